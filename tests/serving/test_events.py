"""The event of every denoising step, which the page plays."""

import json

import httpx
import pytest

from d1ray.serving.config import ServeConfig
from d1ray.serving.local import local_app


@pytest.fixture(scope="module")
def url(text_folder, listening):
    with listening(local_app(ServeConfig(model=text_folder))) as url:
        yield url


def events_of(url: str, **changes) -> list[tuple[str, dict]]:
    """(kind, data) of each server-sent event of a chat, "[DONE]" left out."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 20,
        "seed": 3,
        "stream": True,
        "diffusion": {"events": True, "block_length": 8, "steps": 12, "decoding": "low_confidence"},
    }
    found = []
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body | changes, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-d1ray-version"].startswith("d1ray-")
        for event in answer.read().decode().strip().split("\n\n"):
            lines = event.splitlines()
            kind = lines[0].removeprefix("event: ") if len(lines) == 2 else "message"
            data = lines[-1].removeprefix("data: ")
            if data != "[DONE]":
                found.append((kind, json.loads(data)))
    assert data == "[DONE]"
    return found


def test_every_step_tells_what_it_commits(url):
    found = events_of(url)
    steps = [data for kind, data in found if kind == "denoising"]
    assert [data["step"] for data in steps] == list(range(len(steps)))
    assert all(data["object"] == "d1ray.denoising" and data["index"] == 0 for data in steps)
    assert all(data["gen_length"] == 24 for data in steps)  # 20, in whole blocks
    assert all(data["block"] == position // 8 for data in steps for position in data["positions"])
    assert all(0 <= confidence <= 1 for data in steps for confidence in data["confidences"])
    places = [position for data in steps for position in data["positions"]]
    assert len(places) == len(set(places))
    tokens = {p: t for data in steps for p, t in zip(data["positions"], data["tokens"], strict=True)}
    text = "".join(
        d["choices"][0]["delta"].get("content", "") for k, d in found if k == "message" and d["choices"]
    )
    assert "".join(tokens[place] for place in range(20)) == text
    assert steps[-1]["forwards"] == len(steps) == found[-1][1]["usage"]["forwards"]


def test_choices_are_told_apart(url):
    found = events_of(url, n=2)
    assert {data["index"] for kind, data in found if kind == "denoising"} == {0, 1}
    assert found[-1][1]["usage"]["completion_tokens"] == 40


def test_without_the_extension_a_stream_has_messages_only(url):
    found = events_of(url, diffusion={"steps": 8, "block_length": 8, "decoding": "threshold"})
    assert {kind for kind, _ in found} == {"message"}
