"""What goes wrong is said plainly, where it went wrong, with what can be done."""

from collections.abc import Callable
from typing import Any

import pytest

FIXED = "low_confidence"
Opened = Callable[..., Any]


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((400, {}, "steps: 5 is <odd>"), "The server refused (400). Steps: 5 is <odd>."),
        ((429, {"Retry-After": "3"}, "64 wait."), "Too many requests (429). 64 wait."),
        ((429, {}, "64 wait."), "Too many requests (429). 64 wait."),
        ((503, {"Retry-After": "1"}, "No replica answers."), "The server failed (503). No replica answers."),
    ],
)
def test_a_refusal_is_shown_as_it_is_and_can_be_tried_again(
    opened: Opened, server: Any, script: Any, refusal: tuple[int, dict[str, str], str], said: str
) -> None:
    page = opened(panes=1)
    pane = page.panes[0]
    server.refusals = [refusal]
    page.clock.install(time=0)
    page.clock.pause_at(1000)
    page.click("#run")
    page.expect(pane.alert).to_contain_text(said)
    pane.is_in("failed")
    again = pane.alert.get_by_role("button")
    for left in range(int(refusal[1].get("Retry-After", 0)), 0, -1):
        page.expect(again).to_have_text(f"Try again in {left} s")
        assert again.is_disabled()
        page.clock.run_for(1000)
    page.expect(again).to_have_text("Try again")
    server.say(FIXED, *script.SHORT)
    again.click()
    pane.is_in("done")
    assert pane.alert.is_hidden()


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (None, "The connection ended before the completion did. 2 tokens had come."),
        (b'data: {"error": {"message": "Out of memory."}}\n\n', "The server failed (500). Out of memory."),
        (b"data: <html>\n\n", "The server sent what is not JSON: <html>"),
    ],
)
def test_a_completion_that_breaks_off_is_not_taken_for_done(
    opened: Opened, server: Any, script: Any, last: bytes | None, said: str
) -> None:
    page = opened(panes=1)
    pane = page.panes[0]
    page.click("#run")
    server.say(FIXED, script.SHORT[0])
    pane.has_masks(14)
    server.say(FIXED, last)
    page.expect(pane.alert).to_contain_text(said)
    pane.is_in("failed")
    assert pane.shown == ["Hi", "!"]
    assert page.locator("#comparison").is_hidden()


def test_a_server_that_is_gone_is_named(opened: Opened) -> None:
    page = opened(panes=1)
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.click("#run")
    page.expect(page.panes[0].alert).to_contain_text("The server does not answer.")


def test_a_key_that_is_no_longer_good_is_asked_for_again(opened: Opened, server: Any, script: Any) -> None:
    page = opened(panes=1)
    server.key = "new"
    page.click("#run")
    page.expect(page.panes[0].alert).to_contain_text(
        "The server wants an API key. Incorrect API key provided."
    )
    page.expect(page.locator("#key")).to_be_focused()
    page.keyboard.type("new")
    page.keyboard.press("Enter")
    server.say(FIXED, *script.SHORT)
    page.panes[0].alert.get_by_role("button").click()
    page.panes[0].is_in("done")
