"""A real browser for the tests of pages: one process a session, which starts when the first test asks for it.

Needs the system's chromium; without one these tests are skipped.
"""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
PATIENCE_MS = 30_000  # of every wait for an event, so that a busy machine fails no test


@pytest.fixture(scope="session")
def chromium() -> Iterator[tuple[Any, asyncio.AbstractEventLoop]]:
    """The browser, and the event loop that it is driven by."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    with sync_api.sync_playwright() as playwright:
        # Root, as in a container, has no sandbox to offer; the pages are our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        loop = asyncio.get_running_loop()
        asyncio._set_running_loop(None)
        yield browser, loop
        asyncio._set_running_loop(loop)
        browser.close()


@pytest.fixture
def browser(chromium: tuple[Any, asyncio.AbstractEventLoop]) -> Iterator[Any]:
    """Playwright's loop counts as running in this thread between its calls, too: here only while a test has
    the browser, because other tests run loops of their own."""
    browser, loop = chromium
    asyncio._set_running_loop(loop)
    yield browser
    asyncio._set_running_loop(None)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """``open_page(address, *more, width=1440, **settings)``: the page, ready, in a context of its own.

    It may ask for what begins with its address or with one of ``more``, and logs nothing but refusals of
    requests, which every browser does. ``page.expect(locator)`` waits.
    """
    from playwright.sync_api import expect

    errors: list[str] = []
    contexts = []

    def logged(message: Any) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            errors.append(message.text)

    def open_one(address: str, *more: str, width: int = 1440, **settings: Any) -> Any:
        def asked(request: Any) -> None:
            if not request.url.startswith((address, *more)):
                errors.append(request.url)

        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.expect = expect
        page.on("console", logged)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", asked)
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert errors == []
