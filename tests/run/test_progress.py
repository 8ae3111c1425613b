import math
import re
from io import StringIO

import pytest
from rich.console import Console

from d1ray.run.progress import Progress, duration

LATEST = {"reward": 0.5, "solved": 0.25, "kl": 0.01, "clip_fraction": 0.1, "tokens_per_s": 1234.4}
SHOWN = "reward 0.500  solved 25.0 %  KL 0.0100  clip 10.0 %  1,234 tokens/s"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch):
    for name in ("CI", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def plain_console() -> Console:
    return Console(file=StringIO(), force_terminal=False, width=80)


def printed(console: Console) -> list[str]:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_plain_lines_show_every_known_metric_the_elapsed_time_and_the_eta(clock):
    console = plain_console()
    with Progress(console, clock) as progress, progress.stage("diffu-GRPO", total=36) as stage:
        clock.now = 10
        stage.update(1, LATEST)
    assert printed(console) == [
        "diffu-GRPO: started, 36 steps",
        f"diffu-GRPO: 1/36  {SHOWN}  elapsed 0:10  ETA 5:50",
        f"diffu-GRPO: done 1/36  {SHOWN}  elapsed 0:10",
    ]


def test_plain_lines_come_at_every_tenth_however_fast_the_steps(clock):
    console = plain_console()
    with Progress(console, clock) as progress, progress.stage("SFT", total=1000) as stage:
        for step in range(1, 1001):
            stage.update(step)
    assert [line.split()[1] for line in printed(console)[1:-1]] == [
        f"{n}/1000" for n in range(100, 1001, 100)
    ]


def test_plain_lines_come_at_most_every_five_seconds_between_the_tenths(clock):
    console = plain_console()
    with Progress(console, clock) as progress, progress.stage("SFT", total=1000) as stage:
        for step in range(1, 51):
            clock.now = step * 0.5
            stage.update(step)
    assert [line.split()[1] for line in printed(console)[1:-1]] == [f"{n}/1000" for n in (10, 20, 30, 40, 50)]


def test_plain_lines_have_no_control_codes_in_ci_dumb_terminals_and_files(clock, monkeypatch):
    for setting in ({"CI": "true"}, {"TERM": "dumb"}, {}):
        with monkeypatch.context() as context:
            for name, value in setting.items():
                context.setenv(name, value)
            console = Console(file=StringIO(), force_terminal=bool(setting), width=80)
            with Progress(console, clock) as progress, progress.stage("SFT", total=2) as stage:
                progress.note("[bold]a note[/bold]")
                stage.update(1, LATEST)
            text = "\n".join(printed(console))
        assert "\x1b" not in text and "\r" not in text
        assert text.isascii() and "[bold]a note[/bold]" in text and SHOWN in text


def test_a_terminal_gets_a_live_bar_with_metrics_and_notes_above(clock):
    console = Console(file=StringIO(), force_terminal=True, width=100)
    with Progress(console, clock) as progress:
        with progress.stage("SFT", total=4) as stage:
            stage.update(4, {"loss": 0.5})
        with progress.stage("diffu-GRPO", total=36) as stage:
            clock.now = 10
            stage.update(1, LATEST)
            progress.note("checkpoint saved")
    text = "\n".join(printed(console))
    assert "\x1b[" in text
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    for part in ("SFT", "4/4", "diffu-GRPO", "1/36", "━", SHOWN, "checkpoint saved"):
        assert part in last


def test_eta_is_exact_at_a_steady_pace_and_counts_down_between_steps(clock):
    with Progress(plain_console(), clock) as progress, progress.stage("RL", total=20) as stage:
        assert stage.eta_s is None
        for step in range(1, 11):
            clock.now += 3
            stage.update(step)
        assert stage.eta_s == pytest.approx(30)
        clock.now += 2
        assert stage.eta_s == pytest.approx(28)
        clock.now += 1000
        assert stage.eta_s == 0


def test_eta_follows_a_change_of_pace(clock):
    with Progress(plain_console(), clock) as progress, progress.stage("RL", total=200) as stage:
        for step in range(1, 101):
            clock.now += 1 if step <= 50 else 10
            stage.update(step)
        assert stage.eta_s == pytest.approx(1000, rel=0.01)


def test_eta_of_a_resumed_stage_counts_only_its_own_steps(clock):
    console = plain_console()
    with Progress(console, clock) as progress, progress.stage("RL", total=20, done=10) as stage:
        clock.now = 2
        stage.update(11)
        assert stage.eta_s == pytest.approx(18)
    assert printed(console)[0] == "RL: started, 20 steps, resuming at step 10"


def test_a_stage_of_unknown_length_has_no_eta(clock):
    for terminal in (False, True):
        console = Console(file=StringIO(), force_terminal=terminal, width=80)
        with Progress(console, clock) as progress, progress.stage("evaluate", total=None) as stage:
            clock.now += 10
            stage.update(7)
            assert stage.eta_s is None and stage.count == "7"


def test_odd_metrics_never_raise_and_known_ones_keep_their_last_value(clock):
    console = plain_console()
    odd = {
        "reward": math.nan,
        "kl": math.inf,
        "solved": None,
        "clip_fraction": "?",
        "unknown": 3,
        "seconds": [],
    }
    with Progress(console, clock) as progress, progress.stage("RL", total=1) as stage:
        stage.update(0, {"solved": 0.5})
        stage.update(1, odd)
        stage.update(5, {})
        stage.update(3)
    assert "reward nan  solved 50.0 %  KL inf  elapsed" in printed(console)[1]


def test_a_stage_of_no_steps_is_shown(clock):
    for terminal in (False, True):
        console = Console(file=StringIO(), force_terminal=terminal, width=80)
        with Progress(console, clock) as progress, progress.stage("RL", total=0) as stage:
            stage.update(0)
        assert "RL" in "".join(printed(console))


def test_an_interrupted_stage_is_not_called_done(clock):
    console = plain_console()
    with (
        pytest.raises(KeyboardInterrupt),
        Progress(console, clock) as progress,
        progress.stage("RL", total=9),
    ):
        raise KeyboardInterrupt
    assert printed(console)[-1].startswith("RL: stopped 0/9")


def test_durations_read_as_clocks():
    assert [duration(s) for s in (0, 59.6, 75, 3675)] == ["0:00", "1:00", "1:15", "1:01:15"]
