"""The playground in a real browser, and a server whose every word and moment a test decides."""

import json
import queue
import select
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from d1ray.serving import playground

DEFAULTS = {
    "gen_length": 16,
    "steps": 8,
    "block_length": 8,
    "temperature": 0.5,
    "decoding": "low_confidence",
    "threshold": 0.9,
}


def denoised(step: int, tokens: dict[int, str], *confidences: float) -> bytes:
    """The event of a denoising step: tokens by position."""
    data = {
        "object": "d1ray.denoising",
        "index": 0,
        "step": step - 1,
        "block": min(tokens) // 8,
        "positions": list(tokens),
        "tokens": list(tokens.values()),
        "confidences": list(confidences) or [0.999] * len(tokens),
        "forwards": step,
        "gen_length": 16,
    }
    return b"event: denoising\ndata: " + json.dumps(data).encode() + b"\n\n"


def chunk(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}]
    data = {"object": "chat.completion.chunk", "choices": choices, "system_fingerprint": "7", **more}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
END = "<|endoftext|>"
SHORT = (
    denoised(1, {0: "Hi", 3: "!"}, 0.3, 0.97),
    denoised(2, {1: " <b>", 2: "&amp;"}, 0.6, 0.9),
    denoised(3, {4: END, 5: END, 6: END, 7: END}),
    chunk("Hi <b>&amp;!"),
    chunk(finish="stop"),
    chunk(usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "forwards": 3}),
    DONE,
)


class Scripted:
    """A server that says what it is told to: ``say(decoding, piece, ...)``; None breaks the connection off.

    Attributes:
        asked: (headers, body) of each completion that was asked for.
        left: the decodings whose client left.
        refusals: (status, headers, message), taken one by one instead of a completion.
        key: wanted of every request, if not "".
        models, limits: served.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.left: queue.Queue[str] = queue.Queue()
        self.refusals: list[tuple[int, dict[str, str], str]] = []
        self.key = ""
        self.models, self.limits = ["tiny"], {"max_tokens": 32}
        self.pieces: dict[str, queue.Queue[bytes | None]] = {
            decoding: queue.Queue() for decoding in ("low_confidence", "threshold")
        }
        self.closing = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"scripted": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def say(self, decoding: str, *pieces: bytes | None) -> None:
        for piece in pieces:
            self.pieces[decoding].put(piece)

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers for a ``Scripted``."""

    protocol_version = "HTTP/1.1"
    scripted: Scripted

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            if self._admitted():
                data = [{"id": name, "object": "model"} for name in self.scripted.models]
                about = {"defaults": DEFAULTS, "limits": self.scripted.limits, "version": "7"}
                self._json(200, {"object": "list", "data": data, "d1ray": about})
            return
        file = playground.answer("index.html" if self.path == "/" else self.path.removeprefix("/page/"))
        self._answer(200, bytes(file.body), str(file.media_type), playground.HEADERS)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._admitted():
            return
        self.scripted.asked.append((dict(self.headers), body))
        if self.scripted.refusals:
            return self._refuse(*self.scripted.refusals.pop(0))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        self._stream(body["diffusion"]["decoding"])

    def _stream(self, decoding: str) -> None:
        while not self.scripted.closing.is_set():
            try:
                piece = self.scripted.pieces[decoding].get(timeout=0.05)
            except queue.Empty:
                if select.select([self.connection], [], [], 0)[0]:  # readable, because it was closed
                    return self.scripted.left.put(decoding)
                continue
            if piece is None:
                return
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            if piece == DONE:
                self.wfile.write(b"0\r\n\r\n")
                return

    def _admitted(self) -> bool:
        if not self.scripted.key or self.headers["Authorization"] == f"Bearer {self.scripted.key}":
            return True
        self._refuse(401, {}, "Incorrect API key provided.")
        return False

    def _refuse(self, status: int, headers: dict[str, str], message: str) -> None:
        self._json(
            status,
            {"error": {"message": message, "type": "error", "param": None, "code": None}},
            headers,
        )

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(value).encode(), "application/json", headers or {})

    def _answer(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": kind, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


class Pane:
    """What a person sees of a pane."""

    def __init__(self, node: Any, expect: Any):
        self.node, self.expect = node, expect
        self.tokens = node.locator(".canvas .token")
        self.alert = node.get_by_role("alert")
        self.text = node.locator(".text")
        self.slider = node.get_by_label("Denoising step")

    def setting(self, label: str) -> Any:
        return self.node.get_by_label(label)

    def is_in(self, state: str) -> None:
        """Waits for it."""
        self.expect(self.node.locator(".state")).to_have_text(state)

    def has_masks(self, count: int) -> None:
        """Waits for it."""
        self.expect(self.node.locator(".canvas .token.masked")).to_have_count(count)

    @property
    def shown(self) -> list[str]:
        """The tokens that are not masked, from left to right."""
        return list(self.node.locator(".canvas .token:not(.masked)").all_inner_texts())

    @property
    def meters(self) -> dict[str, str]:
        labels, values = self.node.locator(".meters dt"), self.node.locator(".meters dd")
        return dict(zip(labels.all_inner_texts(), values.all_inner_texts(), strict=True))


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture
def opened(open_page: Callable[..., Any], server: Scripted) -> Callable[..., Any]:
    """``opened(width=1440, panes=2, url=the scripted server's, **settings)``: the page, with ``panes`` as a
    list of ``Pane``. It asks nobody but its server."""

    def open_playground(width: int = 1440, panes: int = 2, url: str | None = None, **settings: Any) -> Any:
        page = open_page(url or server.url, width=width, **settings)
        page.panes = [Pane(page.locator(".pane").nth(index), page.expect) for index in range(2)]
        if panes == 1:
            page.uncheck("#compare")
        return page

    return open_playground


@pytest.fixture
def script() -> Any:
    """The pieces that a ``Scripted`` can say."""
    from types import SimpleNamespace

    return SimpleNamespace(denoised=denoised, chunk=chunk, SHORT=SHORT, DONE=DONE)
