"""Clients of a server under load: plain and streamed requests, some left half-way, some malformed.

Every whole answer is compared with what the server gave for the same request alone. Tests get this module as
the fixture ``serving_clients``.
"""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

MALFORMED = (b"", b"{", b"\xff", b"[]", b'{"model": "tiny"}', b'{"model": "tiny", "prompt": "x", "n": -1}')
TIMEOUT_S = 120


@dataclass
class Report:
    """What the clients saw.

    Attributes:
        seconds: of each whole answer.
        tokens: of the completions, also of those that were left.
        statuses: how often each came, of requests that were not left.
        wrong: (request, answer, expected) of every answer that is not the one it should be.
        left: requests whose client left.
    """

    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[tuple[Any, Any, Any]] = field(default_factory=list)
    left: int = 0
    broken: int = 0  # streams that ended with an error, as a stream does whose replica died for good

    def percentile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def requests(count: int, seed: int, longest: int = 48, alike: bool = False) -> list[dict[str, Any]]:
    """Completion requests of random lengths and settings; the seed of each is its own.

    With ``alike`` decoding, cache and block length are the server's own, as most clients leave them.
    """
    draw = random.Random(seed)
    made = []
    for place in range(count):
        options: dict[str, Any] = {
            "decoding": draw.choice(["low_confidence", "threshold", "random", "entropy"]),
            "cache": draw.choice(["none", "none", "prefix", "dual"]),
        }
        if options["decoding"] == "threshold":
            options["threshold"] = draw.choice([0.1, 0.5, 0.9])
        made.append(
            {
                "model": "tiny",
                "prompt": "".join(draw.choices("0123456789+-*/ abcdef", k=draw.randint(1, 60))),
                "max_tokens": draw.randint(1, longest),
                "temperature": draw.choice([0.0, 0.5, 1.0]),
                "seed": place,
                "diffusion": {} if alike else options | {"block_length": draw.choice([8, 16])},
            }
        )
    return made


def alone(url: str, asked: list[dict[str, Any]], headers: dict[str, str] | None = None) -> list[str]:
    """The text of each request, one after the other."""
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, headers=headers) as client:
        answers = [client.post("/v1/completions", json=request) for request in asked]
    assert {answer.status_code for answer in answers} == {200}, answers[0].text
    return [answer.json()["choices"][0]["text"] for answer in answers]


async def load(
    url: str,
    clients: int,
    seconds: float,
    asked: list[dict[str, Any]],
    expected: list[str],
    leaving: float = 0.1,
    malformed: float = 0.05,
    streamed: float = 0.3,
) -> Report:
    """So many clients at once ask for so long, with these shares of unusual requests."""
    report, ending = Report(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:

        async def behave(number: int) -> None:
            draw = random.Random(number)
            while time.monotonic() < ending:
                place = draw.randrange(len(asked))
                kind = draw.random()
                if kind < malformed:
                    await _malformed(client, draw, report)
                elif kind < malformed + leaving:
                    await _left(client, asked[place], draw, report)
                else:
                    stream = draw.random() < streamed
                    await _whole(client, asked[place], expected[place], stream, report)

        await asyncio.gather(*map(behave, range(clients)))
    return report


async def _whole(
    client: httpx.AsyncClient, request: dict[str, Any], expected: str, stream: bool, report: Report
) -> None:
    started = time.monotonic()
    answer = await client.post("/v1/completions", json=request | {"stream": stream})
    report.statuses[answer.status_code] += 1
    if answer.status_code in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["message"]
        await asyncio.sleep(0.2)
        return
    if answer.status_code != 200:
        report.wrong.append((request, answer.text, expected))
        return
    if stream:
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        if events[-1] != "[DONE]":
            assert "error" in json.loads(events[-1])
            report.broken += 1
            return
        chunks = [json.loads(event) for event in events[:-1]]
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        report.tokens += len(text)
    else:
        text = answer.json()["choices"][0]["text"]
        report.tokens += answer.json()["usage"]["completion_tokens"]
    report.seconds.append(time.monotonic() - started)
    if text != expected:
        report.wrong.append((request, text, expected))


async def _left(
    client: httpx.AsyncClient, request: dict[str, Any], draw: random.Random, report: Report
) -> None:
    """Leaves after a moment, streaming or not."""
    report.left += 1
    body = request | {"max_tokens": 48, "stream": draw.random() < 0.5}
    try:
        async with asyncio.timeout(draw.uniform(0.001, 0.2)):
            await client.post("/v1/completions", json=body)
    except TimeoutError:
        pass


async def _malformed(client: httpx.AsyncClient, draw: random.Random, report: Report) -> None:
    answer = await client.post("/v1/completions", content=draw.choice(MALFORMED))
    report.statuses[answer.status_code] += 1
    if answer.status_code != 400 or set(answer.json()["error"]) != {"message", "type", "param", "code"}:
        report.wrong.append(("malformed", answer.text, 400))
