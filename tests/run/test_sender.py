"""Rows reach a receiver that fails, in their order, or are counted; nobody waits for it."""

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from d1ray.run import sender
from d1ray.run.sender import FIRST_PAUSE_S, LONGEST_PAUSE_S, MOST_TRIES, Sender


class Receiver:
    """Takes rows but the steps in ``refused``, and none while ``down``."""

    def __init__(self, refused: set[int] = frozenset(), down: bool = False):  # type: ignore[assignment]
        self.refused, self.down, self.steps, self.closed = refused, down, [], 0

    def log(self, row: Mapping[str, Any], at: float) -> None:
        if self.down or row["step"] in self.refused:
            raise ConnectionError("no route")
        self.steps.append(row["step"])

    def close(self) -> None:
        self.closed += 1


def rows_to(receiver: Receiver, steps: range) -> Sender:
    """A sender without its thread."""
    sending = Sender("it", receiver, start=False)
    for step in steps:
        sending.put({"step": step})
    return sending


def test_pauses_grow_up_to_a_bound_and_nothing_is_lost_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    receiver = Receiver(down=True)
    sending = rows_to(receiver, range(3))
    pauses = [sending.send() for _ in range(MOST_TRIES - 1)]
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0] and pauses[-1] == LONGEST_PAUSE_S
    receiver.down = False
    while sending.waiting:
        assert sending.send() == 0
    assert receiver.steps == [0, 1, 2] and sending.lost == 0
    assert [r.message for r in caplog.records] == [
        "it does not take rows: no route; they wait, up to 20000 of them, and are sent again"
    ]


def test_a_row_that_is_never_taken_does_not_keep_the_others_back(caplog: pytest.LogCaptureFixture) -> None:
    receiver = Receiver(refused={1, 3})
    sending = rows_to(receiver, range(5))
    while sending.waiting:
        sending.send()
    assert receiver.steps == [0, 2, 4] and sending.lost == 2
    assert sum("loses rows: one was tried 20 times" in r.message for r in caplog.records) == 1


def test_more_rows_than_may_wait_are_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sender, "MOST_WAITING", 10)
    receiver = Receiver(down=True)
    sending = rows_to(receiver, range(25))
    assert (sending.waiting, sending.lost) == (10, 15)
    receiver.down = False
    while sending.waiting:
        sending.send()
    assert receiver.steps == list(range(15, 25))
    assert sum("the oldest rows give way" in r.message for r in caplog.records) == 1


def test_a_row_that_gave_way_while_it_was_sent_is_no_other_ones_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "MOST_WAITING", 2)

    class Slow(Receiver):
        def log(self, row: Mapping[str, Any], at: float) -> None:
            super().log(row, at)
            if row["step"] == 0:
                sending.put({"step": 2})

    receiver = Slow()
    sending = rows_to(receiver, range(2))
    while sending.waiting:
        sending.send()
    assert receiver.steps == [0, 1, 2]


def test_putting_returns_while_a_receiver_hangs_and_the_end_is_bounded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hanging, entered = threading.Event(), threading.Event()

    class Hangs(Receiver):
        def log(self, row: Mapping[str, Any], at: float) -> None:
            entered.set()
            hanging.wait()
            super().log(row, at)

    receiver = Hangs()
    sending = Sender("it", receiver)
    for step in range(1000):
        sending.put({"step": step})
    assert entered.wait(60)
    sending.end()
    sending.join(0.01)
    assert "it does not take the end of the run, nor 1000 rows of it" in caplog.text
    hanging.set()
    sending.join(60)
    assert receiver.steps == list(range(1000)) and receiver.closed == 1


def test_the_end_waits_for_a_receiver_that_fails_and_tells_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sender, "FIRST_PAUSE_S", 0.0001)
    receiver = Receiver(refused={1})
    sending = Sender("it", receiver)
    for step in range(3):
        sending.put({"step": step})
    sending.end()
    sending.join(60)
    assert receiver.steps == [0, 2] and receiver.closed == 1
    assert "it lacks 1 rows of the run" in caplog.text
    assert FIRST_PAUSE_S > 0.0001
