"""Tokens come out of the masks as the server commits them, and again when they are replayed."""

import re
from collections.abc import Callable
from typing import Any

FIXED, THRESHOLD = "low_confidence", "threshold"
Opened = Callable[..., Any]


def replayed(page: Any) -> list[int]:
    """How many masks each pane shows at the moment at which Replay is pressed."""
    counts: list[int] = page.evaluate(
        """() => {
            document.querySelector("#replay").click();
            const canvases = [...document.querySelectorAll(".pane .canvas")];
            return canvases.map((canvas) => canvas.querySelectorAll(".token.masked").length);
        }"""
    )
    return counts


def test_tokens_are_unmasked_in_place_step_by_step_coloured_by_confidence(
    opened: Opened, server: Any, script: Any
) -> None:
    page = opened(panes=1)
    pane = page.panes[0]
    page.click("#run")
    pane.is_in("waiting for the server")
    pane.has_masks(16)
    server.say(FIXED, script.SHORT[0])
    pane.has_masks(14)
    pane.is_in("denoising")
    assert pane.shown == ["Hi", "!"]
    server.say(FIXED, script.SHORT[1])
    pane.has_masks(12)
    assert pane.shown == ["Hi", " <b>", "&amp;", "!"]  # each in its place, and as text
    assert [pane.tokens.nth(p).get_attribute("data-bin") for p in range(4)] == ["0", "1", "2", "3"]
    page.evaluate("document.getAnimations().forEach((one) => one.cancel())")
    colours = pane.tokens.evaluate_all(
        "all => all.slice(0, 5).map((one) => getComputedStyle(one).backgroundColor)"
    )
    assert len(set(colours)) == 5  # the mask's too
    assert "fresh" in pane.tokens.nth(2).get_attribute("class")
    assert "fresh" not in pane.tokens.nth(0).get_attribute("class")
    assert pane.meters["forwards"] == "2"
    server.say(FIXED, *script.SHORT[2:])
    pane.is_in("done")
    assert pane.shown == ["Hi", " <b>", "&amp;", "!", "∎", "∎", "∎", "∎"]
    assert pane.node.locator(".canvas .unused").count() == 8
    assert pane.text.inner_text() == "Hi <b>&amp;!"
    assert page.locator("main b:not(.tip b), main img").count() == 0


def test_the_numbers_are_those_of_the_tokens_that_count(opened: Opened, server: Any, script: Any) -> None:
    page = opened(panes=1)
    pane = page.panes[0]
    page.clock.install(time=0)
    page.clock.pause_at(1000)  # from here on time passes only where the test says so
    page.click("#run")
    page.clock.run_for(2500)
    server.say(FIXED, *script.SHORT)
    pane.is_in("done")
    assert pane.meters == {"tokens/s": "1.60", "forwards/token": "0.75", "forwards": "3", "seconds": "2.50"}
    note = pane.node.locator(".note").inner_text()
    assert note == "8 positions were never denoised: the text had ended before them. Version 7."


def test_events_may_arrive_in_any_pieces(opened: Opened, server: Any, script: Any) -> None:
    page = opened(panes=1)
    event = script.denoised(1, {0: "naïve \N{SNOWMAN}"}).replace(rb"\u2603", "\N{SNOWMAN}".encode())
    said = b": a comment\r\n\r\n" + event.replace(b"\n", b"\r\n") + script.chunk("ok", "stop")
    page.click("#run")
    server.say(FIXED, *(said[at : at + 1] for at in range(len(said))), script.DONE)
    page.panes[0].is_in("done")
    assert page.panes[0].shown == ["naïve \N{SNOWMAN}"]
    assert page.panes[0].text.inner_text() == "ok"


def test_the_slider_scrubs_and_play_replays(opened: Opened, server: Any, script: Any) -> None:
    page = opened(panes=1)
    pane = page.panes[0]
    server.say(FIXED, *script.SHORT)
    page.click("#run")
    pane.is_in("done")
    assert (pane.slider.get_attribute("max"), pane.slider.input_value()) == ("3", "3")
    pane.slider.fill("1")
    assert pane.shown == ["Hi", "!"] and pane.meters["forwards"] == "1"
    assert pane.slider.get_attribute("aria-valuetext") == "step 1 of 3"
    pane.slider.focus()
    page.keyboard.press("Home")
    pane.has_masks(16)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert pane.shown == ["Hi", " <b>", "&amp;", "!"]
    page.select_option("#replays select", "32")
    play = pane.node.get_by_role("button", name="Play")
    play.click()
    pane.has_masks(8)
    page.expect(play).to_be_visible()  # no longer Pause
    page.select_option("#replays select", "1")
    assert replayed(page)[0] == 16
    pane.node.get_by_role("button", name=re.compile("Play|Pause")).click()
    page.expect(play).to_be_visible()


def test_a_slider_moved_back_stays_while_tokens_come(opened: Opened, server: Any, script: Any) -> None:
    page = opened(panes=1)
    pane = page.panes[0]
    page.click("#run")
    server.say(FIXED, *script.SHORT[:2])
    pane.has_masks(12)
    pane.slider.fill("1")
    pane.has_masks(14)
    server.say(FIXED, script.SHORT[2])
    page.expect(pane.slider).to_have_attribute("max", "3")
    pane.has_masks(14)
    pane.slider.fill("3")
    pane.has_masks(8)
    server.say(FIXED, *script.SHORT[3:])
    pane.is_in("done")


def test_two_panes_run_at_once_and_are_compared(opened: Opened, server: Any, script: Any) -> None:
    page = opened()
    fixed, threshold = page.panes
    page.click("#run")
    server.say(THRESHOLD, script.denoised(1, {0: "a", 1: "b", 2: "c"}))
    server.say(FIXED, script.denoised(1, {0: "a"}))
    threshold.has_masks(13)
    fixed.has_masks(15)
    assert page.locator("#comparison").is_hidden()
    server.say(THRESHOLD, script.chunk("abc", "length"), script.DONE)
    threshold.is_in("done")
    fixed.is_in("denoising")
    rest = (script.denoised(2, {1: "b"}), script.denoised(3, {2: "c"}))
    server.say(FIXED, *rest, script.chunk("abc", "length"), script.DONE)
    verdict = page.locator("#comparison .verdict")
    page.expect(verdict).to_contain_text(
        "3.0× fewer forward passes: 1 by “Threshold 0.9”, 3 by “Fixed schedule, 8 steps”. "
        "The texts are the same."
    )
    page.expect(page.locator("#comparison figure polyline")).to_have_count(2)
    assert "3.0 times fewer forward passes" in page.locator("#said").text_content()
    page.select_option("#replays select", "1")
    assert replayed(page) == [16, 16]  # both, on one clock
    page.uncheck("#compare")
    assert page.locator("#comparison").is_hidden() and threshold.node.is_hidden()
    page.click("#run")
    page.check("#compare")
    assert page.locator("#comparison").is_hidden()  # it was about the runs before


def test_stop_ends_the_request_and_keeps_what_has_come(opened: Opened, server: Any, script: Any) -> None:
    page = opened(panes=1)
    pane = page.panes[0]
    assert page.locator("#stop").is_disabled()
    server.say(FIXED, script.SHORT[0])
    page.click("#run")
    pane.has_masks(14)
    page.click("#stop")
    pane.is_in("stopped")
    assert server.left.get(timeout=20) == FIXED
    assert pane.shown == ["Hi", "!"] and not pane.alert.is_visible()
    page.expect(page.locator("#stop")).to_be_disabled()


def test_running_again_gives_up_the_run_before(opened: Opened, server: Any, script: Any) -> None:
    page = opened(panes=1)
    server.say(FIXED, script.SHORT[0])
    page.click("#run")
    page.panes[0].has_masks(14)
    page.click("#run")
    assert server.left.get(timeout=20) == FIXED
    page.panes[0].has_masks(16)
    server.say(FIXED, *script.SHORT)
    page.panes[0].is_in("done")


def test_a_sudoku_is_drawn_and_checked(opened: Opened, server: Any, script: Any) -> None:
    from d1ray.tasks.sudoku import completions

    page = opened(panes=1)
    right = completions(page.input_value("#problem").split("\n")[1])[0]
    for answer, verdict in ((right, "✓ solved"), (right[1:] + right[0], "✗ not a solution")):
        text = f"<answer>no</answer> <answer>\n{answer}\n</answer>"
        server.say(FIXED, script.denoised(1, {0: "x"}), script.chunk(text, "stop"), script.DONE)
        page.click("#run")
        page.expect(page.locator(".solved p")).to_have_text(verdict)
        assert "".join(page.locator(".sudoku td").all_inner_texts()) == answer
