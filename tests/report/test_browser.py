"""The page in a real browser: it shows, filters, plays and answers to the keyboard, and logs no error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from d1ray.report.report import report

MakeRun = Callable[..., Path]
EVIL = "</script><img src=x onerror=document.title='owned'>"


def completion(step: int, group: int, rollout: int) -> str:
    if (step, group, rollout) == (1, 0, 0):
        return EVIL[:38]
    return f"Wait, {step}" if rollout == 1 else f"<answer>{step}{group}{rollout}</answer>"


@pytest.fixture
def opened(open_page: Callable[..., Any], make_run: MakeRun, tmp_path: Path) -> Callable[..., Any]:
    """``opened(*folders, width=1440, **settings)``: the page about them."""

    def open_report(*folders: Path, **settings: Any) -> Any:
        file = report(folders or [make_run(text=completion)], tmp_path / "page.html")
        return open_page(file.as_uri(), "data:", "blob:", **settings)

    return open_report


def masks(page: Any) -> int:
    return int(page.locator(".strip .token.masked").count())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_the_page_fits_narrow_and_wide_screens_in_light_and_dark(
    opened: Callable[..., Any], make_run: MakeRun, width: int, scheme: str
) -> None:
    runs = [make_run("one", text=completion), make_run("two", "seed=1", text=completion)]
    page = opened(*runs, width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(245, 246, 248)"
    assert light == (scheme == "light")
    page.click("#theme")
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(245, 246, 248)") != light


def test_completions_are_text_whatever_they_say(opened: Callable[..., Any]) -> None:
    page = opened()
    assert page.locator("#completion-text").inner_text() == EVIL[:38]
    assert page.locator("img").count() == 0 and page.title() == "run – d1ray report"


def test_the_filters_leave_the_completions_that_match(opened: Callable[..., Any]) -> None:
    page = opened()
    count, found = page.locator("#count"), page.locator(".option")
    assert count.inner_text() == "1 – 48 of 48"  # 4 steps of 3 groups of 4
    page.select_option("#solved", "yes")
    assert count.inner_text() == "1 – 24 of 24"
    page.fill("#stepFrom", "3")
    assert count.inner_text() == "1 – 12 of 12"
    page.fill("#search", "<ANSWER>42")
    assert [text.split("\n")[-1] for text in found.all_inner_texts()] == [
        "<answer>420</answer>",
        "<answer>422</answer>",
    ]
    page.fill("#search", "")
    page.select_option("#solved", "")
    page.fill("#rewardTo", "0.5")
    assert count.inner_text() == "1 – 12 of 12"  # the wrong ones of two steps
    page.select_option("#with-sign", "yes")
    assert count.inner_text() == "1 – 6 of 6"
    page.fill("#rewardFrom", "0.5")
    assert count.inner_text() == "no completion matches"
    assert "Nothing is chosen" in page.locator("#detail").inner_text()


def test_a_completion_plays_from_all_masks_to_all_tokens(opened: Callable[..., Any]) -> None:
    page = opened()
    page.locator(".option").nth(2).click()  # <answer>102</answer> and the end: 6 tokens in 6 steps
    assert masks(page) == 0
    page.get_by_label("Speed").select_option("32")
    at_the_start = page.get_by_role("button", name="Play").evaluate(
        "(play) => { play.click(); return document.querySelectorAll('.strip .token.masked').length; }"
    )
    assert at_the_start == 6
    page.expect(page.get_by_role("button", name="Play")).to_be_visible()  # no longer Pause
    assert masks(page) == 0 and page.locator(".status").inner_text() == "step 6 of 6, 6 of 6 tokens"
    page.get_by_label("Denoising step").fill("2")
    assert masks(page) == 4
    page.locator(".strip .token").nth(1).hover()
    tip = page.locator(".strip .tip").inner_text()
    assert tip.split("\n") == ['"1"', "position 2, committed at step 2", "probability 0.975"]
    page.locator(".strip .token").nth(4).hover()
    assert page.locator(".strip .tip strong").inner_text() == "masked"


def test_everything_answers_to_the_keyboard(opened: Callable[..., Any]) -> None:
    page = opened()
    head = page.locator("#detail h3")
    page.locator("#list").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "End", "ArrowUp"):
        page.keyboard.press(key)
    assert head.inner_text() == "step 4, group 11, completion 2"
    assert page.locator(".option[aria-selected=true]").count() == 1
    page.get_by_label("Denoising step").focus()
    page.keyboard.press("Home")
    assert masks(page) == 6
    page.keyboard.press("ArrowRight")
    assert masks(page) == 5
    page.locator(".strip").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".strip .token.at").inner_text() == "<answer>"
    page.get_by_label("Speed").select_option("32")
    page.get_by_role("button", name="Play").focus()
    page.keyboard.press("Space")
    page.expect(page.locator(".strip .token.masked")).to_have_count(0)
    page.locator("figure .chart").first.focus()
    page.keyboard.press("ArrowRight")
    assert (
        "step 0: 25.0 % (16.0 % – 36.8 %)" in page.locator("figure .chart [aria-live]").first.text_content()
    )
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_metrics_and_runs_are_chosen_and_read_off(opened: Callable[..., Any], make_run: MakeRun) -> None:
    page = opened(make_run("one"), make_run("two", "seed=1"))
    shown = page.locator("#curves figure:visible h3")
    assert "Loss" not in shown.all_inner_texts()
    page.get_by_text("Choose metrics").click()
    page.locator("[data-metric=loss]").check()
    assert "Loss" in shown.all_inner_texts()
    reward = page.locator("figure", has_text="Reward").first
    assert reward.locator("polyline").count() == 2
    reward.locator(".chart").hover()
    assert (
        "one 0.625 (" in reward.locator(".tip").inner_text()
        and "two 0.625 (" in reward.locator(".tip").inner_text()
    )
    page.get_by_role("checkbox", name="two").uncheck()
    assert reward.locator("polyline").count() == 1
    page.select_option("#smoothing", "3")
    assert reward.locator("polyline").count() == 1


def test_motion_is_reduced_where_that_is_preferred(opened: Callable[..., Any], make_run: MakeRun) -> None:
    run = make_run()
    moving, still = opened(run, reduced_motion="no-preference"), opened(run, reduced_motion="reduce")
    duration = "getComputedStyle(document.querySelector('.strip .token')).transitionDuration"
    assert moving.evaluate(duration) == "0.12s, 0.12s" and still.evaluate(duration) == "0s"
    assert still.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_a_run_without_anything_still_makes_a_page(opened: Callable[..., Any], make_run: MakeRun) -> None:
    folder = make_run(steps=0, rows=[])
    page = opened(folder)
    assert page.locator("#trouble").is_hidden()
    assert "metrics.jsonl holds no metrics." in page.locator("#curves").inner_text()
