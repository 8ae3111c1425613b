"""The playground and the API together, with a tiny model that makes things up."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from d1ray.models.save import save_model
from d1ray.serving import playground
from d1ray.serving.config import ServeConfig
from d1ray.serving.local import local_app

Opened = Callable[..., Any]
SAMPLING = {"gen_length": 32, "steps": 16, "block_length": 8, "temperature": 0.7, "threshold": 0.5}


@pytest.fixture
def serve(make_text_model: Any, tokenizer: Any, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """``serve(**settings)``: the address of the application with a tiny model."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(**settings: Any) -> str:
        save_model(make_text_model(), tmp_path / "tiny", tokenizer)
        config = ServeConfig.model_validate({"model": tmp_path / "tiny", "sampling": SAMPLING, **settings})
        server = uvicorn.Server(uvicorn.Config(local_app(config), log_level="warning"))
        listening = socket.create_server(("127.0.0.1", 0))  # who asks before the server runs waits for it
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listening.getsockname()[1]}/"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(20)


def test_a_typed_problem_is_answered_in_both_panes_as_the_api_answers_it(
    opened: Opened, serve: Callable[..., str]
) -> None:
    url = serve()
    page = opened(url=url)
    page.fill("#problem", "2+2=?")
    page.fill("#seed", "3")
    page.keyboard.press("Control+Enter")
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "2+2=?"}],
        "max_tokens": 32,
        "seed": 3,
    }
    decodings = ({"decoding": "low_confidence", "steps": 16}, {"decoding": "threshold", "threshold": 0.5})
    for pane, diffusion in zip(page.panes, decodings, strict=True):
        pane.is_in("done")
        answer = httpx.post(f"{url}v1/chat/completions", json=asked | {"diffusion": diffusion}, timeout=30)
        said = answer.json()
        text = said["choices"][0]["message"]["content"]
        assert pane.text.text_content() == text or (text == "" and pane.text.text_content() == "(empty)")
        shown = "".join(pane.shown).split("∎")[0]
        assert shown == text.replace("\n", "↵")
        assert pane.meters["forwards"] == str(said["usage"]["forwards"])
        assert said["usage"]["forwards"] == int(pane.slider.get_attribute("max"))
        assert pane.node.locator(".canvas .token[data-bin]").count() == len(pane.shown)
    page.expect(page.locator("#comparison .verdict")).to_be_visible()


def test_what_the_api_refuses_is_shown(opened: Opened, serve: Callable[..., str]) -> None:
    page = opened(url=serve(), panes=1)
    page.fill("#problem", "long " * 20)
    page.click("#run")
    page.expect(page.panes[0].alert).to_contain_text("The server refused (400). The prompt has")


def test_the_page_opens_without_a_key_and_the_api_with_one(
    opened: Opened, serve: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("# of the team\ns3cret\n")
    page = opened(url=serve(api_key_file=tmp_path / "keys"))
    page.expect(page.locator("#trouble")).to_contain_text("The server wants an API key.")
    page.fill("#key", "s3cret")
    page.keyboard.press("Enter")
    page.expect(page.locator("#served")).to_contain_text("tiny")
    page.fill("#problem", "hi")
    page.click("#run")
    for pane in page.panes:
        pane.is_in("done")


def test_stopping_frees_the_server(opened: Opened, serve: Callable[..., str]) -> None:
    page = opened(url=serve(limits={"rows": 1}), panes=1)
    page.fill("#problem", "hi")
    page.evaluate(
        """() => new Promise((stopped) => {
          const observer = new MutationObserver(() => {
            document.getElementById("stop").click();
            observer.disconnect();
            stopped();
          });
          document.getElementById("run").click();
          observer.observe(document.querySelector(".canvas"), { subtree: true, attributes: true });
        })"""
    )
    page.expect(page.locator("#stop")).to_be_disabled()
    for _ in range(3):
        page.click("#run")
        page.panes[0].is_in("done")


def test_the_page_and_its_parts_are_served_as_what_they_are(serve: Callable[..., str]) -> None:
    url = serve()
    kinds = {"": "text/html", "page/main.js": "text/javascript", "page/page.css": "text/css"}
    kinds |= {"page/elements.js": "text/javascript", "page/base.css": "text/css"}  # what all pages have
    for path, kind in {**kinds, "page/icon.svg": "image/svg+xml"}.items():
        answer = httpx.get(url + path, timeout=60)
        assert answer.status_code == 200 and answer.headers["content-type"].split(";")[0] == kind
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy and "default-src 'none'" in policy


def test_no_file_of_the_playground_hides_one_that_all_pages_have() -> None:
    own, shared = ({path.name for path in folder.iterdir()} for folder in playground.FOLDERS)
    assert own & shared == set() and {"index.html", "main.js"} <= own and {"base.css", "theme.js"} <= shared
