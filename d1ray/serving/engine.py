"""Engine: a thread that denoises rows for an event loop that serves requests."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil

from transformers import PreTrainedTokenizerBase

from d1ray.serving.config import LimitsConfig
from d1ray.serving.denoise import denoise
from d1ray.serving.generation import Generation, Progress, Refused, Step
from d1ray.serving.row import Commit, Row
from d1ray.serving.schedule import Schedule
from d1ray.serving.text import Text, end_tokens
from d1ray.serving.weights import Weights

logger = logging.getLogger(__name__)
FAILURES = 3  # denoising steps that fail one after the other before the engine counts as broken
HANGS_S = 300.0  # of one denoising step, and it does


@dataclass(eq=False)
class Ticket:
    """A generation under way: its row, its text, and whom to tell."""

    generation: Generation
    row: Row
    text: Text
    loop: asyncio.AbstractEventLoop
    news: asyncio.Queue[Progress | Exception]
    started: float = field(default_factory=time.monotonic)
    sent: int = 0  # characters

    def tell(self, news: Progress | Exception) -> None:
        """Called in the engine's thread."""
        with suppress(RuntimeError):  # the loop has been closed, and nobody listens
            self.loop.call_soon_threadsafe(self.news.put_nowait, news)

    def progress(self, step: Step | None = None) -> Progress:
        text = self.text.final[self.sent :]
        self.sent += len(text)
        return Progress(
            self.row.weights.version,
            self.row.weights.exact,
            text,
            step,
            self.row.finish,
            len(self.row.completion()),
            self.row.steps,
            time.monotonic() - self.started,
        )


class Engine:
    """Makes completions of many generations at once; a ``Backend``.

    Weights may change under way: rows that have begun end with those they began with, so that for a while
    there are two models in memory.

    Args:
        weights: of the first generations.
        tokenizer: for the texts.
        limits: ``batch_tokens`` and ``rows``.
    """

    def __init__(self, weights: Weights, tokenizer: PreTrainedTokenizerBase, limits: LimitsConfig):
        self.weights, self.tokenizer = weights, tokenizer
        self.ends = end_tokens(tokenizer, weights.model.config.eos_token_id)
        self.schedule = Schedule(limits.batch_tokens, limits.rows)
        self.tickets: dict[Row, Ticket] = {}
        self.pieces: dict[int, str] = {}  # the text of a token by itself
        self.ended: deque[float] = deque(maxlen=32)  # when the last generations did
        self.failures = 0
        self.step_began: float | None = None  # of the one under way
        self.closed = False
        self.changed = threading.Condition()  # guards the schedule and the tickets
        self.thread = threading.Thread(target=self._run, name="d1ray engine", daemon=True)
        self.thread.start()

    async def generate(self, generation: Generation) -> AsyncGenerator[Progress, None]:
        ticket, accepted = self._admit(generation)
        try:
            yield accepted
            while True:
                news = await ticket.news.get()
                if isinstance(news, Exception):
                    raise news
                yield news
                if news.finish is not None:
                    return
        finally:
            self._forget(ticket)

    async def version(self) -> str:
        return self.weights.version

    @property
    def healthy(self) -> bool:
        """Whether denoising works: the thread runs, its last steps have not all failed, and the one under way
        does not hang."""
        began = self.step_began
        hangs = began is not None and time.monotonic() - began > HANGS_S
        return self.thread.is_alive() and self.failures < FAILURES and not hangs

    def swap(self, weights: Weights) -> None:
        """Has generations that begin from now on use ``weights``."""
        self.weights = weights

    def close(self) -> None:
        """Ends the thread; generations under way fail."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def _admit(self, generation: Generation) -> tuple[Ticket, Progress]:
        row = Row(
            self.weights, generation.prompt, generation.config, generation.seed, generation.limit, self.ends
        )
        text = Text(self.tokenizer, generation.stop)
        ticket = Ticket(generation, row, text, asyncio.get_running_loop(), asyncio.Queue())
        with self.changed:
            if self.closed:
                raise RuntimeError("the engine is closed")
            if self.schedule.full:
                raise Refused(self._retry_after())
            accepted = ticket.progress()  # before the engine's thread knows the row
            self.schedule.add(row)
            self.tickets[row] = ticket
            self.changed.notify()
        return ticket, accepted

    def _forget(self, ticket: Ticket) -> None:
        with self.changed:
            self.tickets.pop(ticket.row, None)
            self.schedule.remove(ticket.row)

    def _retry_after(self) -> int:
        """Seconds until a generation has probably ended, 1 to 60."""
        if len(self.ended) < 2:
            return 1
        return min(60, max(1, ceil((self.ended[-1] - self.ended[0]) / (len(self.ended) - 1))))

    def _run(self) -> None:
        while self._turn():
            pass
        self._fail(list(self.tickets), RuntimeError("the engine is closed"))

    def _turn(self) -> bool:
        """Waits for rows and denoises them by a step; False once the engine is closed. Between turns the
        thread holds no row, and so no weights that have been swapped."""
        with self.changed:
            while not self.closed and not len(self.schedule):
                self.changed.wait()
            if self.closed:
                return False
            rows = list(self.schedule.turn())
        if not rows:
            return True
        self.step_began = time.monotonic()
        try:
            commits = denoise(rows)
            for row, commit in zip(rows, commits, strict=True):
                self._report(row, commit)
            self.failures = 0
        except Exception as error:
            logger.exception("a denoising step of %d rows failed", len(rows))
            self.failures += 1
            self._fail(rows, error)
        self.step_began = None
        return True

    def _report(self, row: Row, commit: Commit) -> None:
        ticket = self.tickets.get(row)
        if ticket is None:  # given up meanwhile
            return
        wants, grown = ticket.generation, ""
        if wants.text or wants.stop or row.finish is not None:
            grown = ticket.text.update(row.completion(), row.finish is not None)
            if ticket.text.stopped:
                row.finish = "stop"
        if row.finish is not None:
            self.ended.append(time.monotonic())
        if row.finish is not None or wants.events or (wants.text and grown):
            ticket.tell(ticket.progress(self._step(row, commit) if wants.events else None))

    def _step(self, row: Row, commit: Commit) -> Step:
        return Step(
            row.steps - 1,
            commit.positions[0] // row.config.block_length,
            commit.positions,
            [self._piece(token) for token in commit.tokens],
            commit.confidences,
        )

    def _piece(self, token: int) -> str:
        if token not in self.pieces:
            self.pieces[token] = str(self.tokenizer.decode([token]))
        return self.pieces[token]

    def _fail(self, rows: list[Row], error: Exception) -> None:
        with self.changed:
            for row in rows:
                self.schedule.remove(row)
                ticket = self.tickets.pop(row, None)
                if ticket is not None:
                    ticket.tell(error)
