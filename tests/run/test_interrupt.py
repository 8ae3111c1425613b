"""Signals as wishes: what they raise and with which status, and how long work may go on."""

import signal

import pytest

from actors.buffer import RolloutBuffer
from actors.call import Call, Status
from d1ray.run.interrupt import GivenUp, Interrupt, Interrupted, Patience, Terminated


def test_a_signal_is_a_flag_and_a_second_ctrl_c_insists():
    with Interrupt() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_being_terminated_is_one_wish_however_often_it_is_said():
    """StopJob sends SIGTERM, and the preStop hook's `ray job stop` another; a person may add a Ctrl-C."""
    with pytest.raises(Terminated), Interrupt() as interrupted:
        for number in [signal.SIGTERM] * 5 + [signal.SIGINT] + [signal.SIGTERM] * 5:
            signal.raise_signal(number)
            assert interrupted()
        raise Interrupted


@pytest.mark.parametrize("error", [Interrupted("saved"), GivenUp("not saved")])
def test_the_status_tells_the_signal_and_the_message_stays(error):
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with pytest.raises(Interrupted, match=f"^{error}$") as ended, Interrupt():
            signal.raise_signal(number)
            raise error
        assert ended.value.status == status
        assert isinstance(ended.value, Terminated) == (number == signal.SIGTERM)


def test_patience_lasts_so_many_seconds_from_when_the_signal_is_noticed():
    signalled, now = False, 100.0
    patience = Patience(lambda: signalled, 15, clock=lambda: now)
    assert not patience()
    now = 200.0
    assert not patience()  # nobody has asked for anything
    signalled = True
    assert not patience()
    now = 214.9
    assert not patience()
    now = 215.0
    with pytest.raises(GivenUp, match="what was under way is given up, as it did not end within 15 s"):
        patience()


def test_a_buffer_whose_groups_are_all_there_gives_out_none_after_a_signal():
    buffer = RolloutBuffer(None, None, slots=1, deadline_s=1)
    buffer.started = [Call(None, None, Status.SCORED)]
    with pytest.raises(Interrupted):
        buffer.take(1, lambda: True)
    assert len(buffer.take(1, lambda: False)) == 1
