"""Phones, keyboards, screen readers, light and dark, and no motion where none is wanted."""

from collections.abc import Callable
from typing import Any

import pytest

FIXED, THRESHOLD = "low_confidence", "threshold"
Opened = Callable[..., Any]

# Texts whose contrast is below 4.5 (WCAG 2.2, 1.4.3), but for masks and disabled controls.
FAINT = """() => {
  document.getAnimations().forEach((one) => one.cancel());
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    throw new Error("nothing is behind it");
  };
  const faint = [];
  for (const node of document.body.querySelectorAll("*")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility() || node.closest(":disabled, .masked, svg, noscript")) continue;
    const [one, other] = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => a - b);
    const contrast = (other + 0.05) / (one + 0.05);
    if (contrast < 4.5) faint.push(`${node.outerHTML.slice(0, 80)} ${contrast.toFixed(2)}`);
  }
  return faint;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_the_page_fits_phones_and_screens_in_light_and_dark(
    opened: Opened, server: Any, script: Any, width: int, scheme: str
) -> None:
    page = opened(width, color_scheme=scheme)
    page.fill("#problem", "long" * 200)
    for decoding in (FIXED, THRESHOLD):
        server.say(decoding, script.denoised(1, {0: "w" * 300, 1: "\n\n"}, 0.6, 0.4), *script.SHORT[1:])
    page.click("#run")
    page.expect(page.locator("#comparison")).to_be_visible()
    page.panes[1].tokens.first.hover()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(FAINT) == []
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(245, 246, 248)"
    assert light == (scheme == "light")
    page.click("#theme")
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(245, 246, 248)") != light
    assert page.evaluate(FAINT) == []


def test_everything_answers_to_the_keyboard(opened: Opened, server: Any, script: Any) -> None:
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the problem"
    page.keyboard.press("Enter")
    page.expect(page.locator("#problem")).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("typed")
    for decoding in (FIXED, THRESHOLD):
        server.say(decoding, *script.SHORT)
    page.keyboard.press("Control+Enter")
    page.panes[0].is_in("done")
    assert server.asked[0][1]["messages"][0]["content"] == "typed"
    names = []
    while not (names and names[-1].startswith("Tokens of")):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", page.evaluate("document.activeElement.outerHTML")
        names.append(
            page.evaluate(
                "(({ ariaLabel, labels, textContent }) => ariaLabel ?? labels?.[0]?.textContent"
                " ?? textContent)(document.activeElement).trim()"
            )
        )
        assert len(names) < 40
    assert {"New seed", "Replay", "Settings", "Steps", "Temperature"} <= set(names)
    tip = page.panes[0].node.locator(".tip")
    page.keyboard.press("ArrowRight")
    assert tip.inner_text().split("\n") == ['"Hi"', "position 1, committed at step 1", "probability 0.300"]
    page.keyboard.press("End")
    assert tip.inner_text().split("\n") == ["never denoised", "position 16"]


def test_a_screen_reader_hears_summaries_and_not_every_token(
    opened: Opened, server: Any, script: Any
) -> None:
    page = opened(panes=1)
    page.evaluate(
        "window.said = []; new MutationObserver(() => said.push(document.getElementById('said').textContent))"
        ".observe(document.getElementById('said'), { childList: true })"
    )
    page.click("#run")
    server.say(FIXED, *script.SHORT)
    page.panes[0].is_in("done")
    said = page.evaluate("said")
    assert len(said) == 2
    assert said[1].startswith("Fixed schedule, 8 steps is done: 4 tokens, 3 forward passes")
    live = page.locator("[aria-live], [role=status], [role=alert], output")
    assert live.evaluate_all("all => all.every((one) => !one.querySelector('.token'))")
    unnamed = page.locator("button, input, select, textarea").evaluate_all(
        "all => all.filter((one) => !one.ariaLabel && !one.labels?.length && !one.textContent.trim()).length"
    )
    assert unnamed == 0


def test_motion_is_reduced_where_that_is_preferred(opened: Opened, server: Any, script: Any) -> None:
    moving, still = opened(panes=1, reduced_motion="no-preference"), opened(panes=1, reduced_motion="reduce")
    duration = "getComputedStyle(document.querySelector('.canvas .token')).transitionDuration"
    assert moving.evaluate(duration) != "0s" and still.evaluate(duration) == "0s"
    server.say(FIXED, *script.SHORT[:2])
    still.click("#run")
    still.panes[0].has_masks(12)
    assert still.evaluate("document.getAnimations().length") == 0
    server.say(FIXED, *script.SHORT[2:])
    still.panes[0].is_in("done")
