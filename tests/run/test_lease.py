"""Who owns a run folder: one process, until it gives it back, is gone, or falls silent."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from d1ray.config.recipe import load_config
from d1ray.run import checkpoint, claims, lease, process
from d1ray.run.checkpoint_writer import CheckpointWriter
from d1ray.run.checkpoint_writer import save as save_checkpoint
from d1ray.run.claims import Claim, LeaseLost, in_force, newest
from d1ray.run.folder import RunFolder
from d1ray.run.lease import LEASE_S, RENEW_S, Held, Lease, own, take

RACES = 200
ELSEWHERE = {"host": "elsewhere", "machine": "another", "pid": 7, "started": 0.0}


class VirtualClock:
    """Time that passes by sleeping alone; ``during`` is called with each sleep."""

    def __init__(self, during: Callable[[], object] = lambda: None):
        self.now, self.during = 1e9, during

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now - 1e9

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.during()


@pytest.fixture
def on_another_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lease]:
    """``on_another_machine(place, clock)``: a lease that a driver elsewhere has taken."""

    def taken(place: Any, clock: VirtualClock) -> Lease:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lease, "this_process", lambda: dict(ELSEWHERE))
            return take(place, clock=clock)

    return taken


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> UPath:
    """Object storage that takes no conditions and whose listings never show anything new."""

    def put(self: Any, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        original(self, path, value)

    original = MemoryFileSystem.pipe_file
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", put)
    monkeypatch.setattr(MemoryFileSystem, "ls", lambda *arguments, **options: [])
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    return UPath("memory://bucket/run")


def driver(place: Path) -> subprocess.Popen[bytes]:
    """Another process, which has taken the place and does not end by itself."""
    code = f"import pathlib, d1ray.run.lease as l; l.take(pathlib.Path({str(place)!r})); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    while newest(place)[1] is None:
        assert process.poll() is None
    return process


def race(takers: int, attempt: Callable[[], Lease]) -> list[Lease]:
    """What those got who won; the others were told who holds it."""
    start, won = threading.Barrier(takers), []

    def run() -> None:
        start.wait()
        try:
            won.append(attempt())
        except Held:
            lost.append(1)

    lost: list[int] = []
    threads = [threading.Thread(target=run) for _ in range(takers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) + len(lost) == takers
    return won


def test_of_two_drivers_that_start_together_exactly_one_has_the_folder(tmp_path: Path) -> None:
    for number in range(RACES):
        (winner,) = race(2, lambda: take(tmp_path))
        assert winner.claim.number == number + 1
        winner.release()


def test_so_has_exactly_one_of_two_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(2), context.Queue()
    places = [tmp_path / str(number) for number in range(RACES)]

    def compete() -> None:
        for place in places:
            start.wait()
            try:
                take(place)
                results.put((place.name, True))
            except Held:
                results.put((place.name, False))

    racers = [context.Process(target=compete) for _ in range(2)]
    for racer in racers:
        racer.start()
    outcomes = [results.get(timeout=60) for _ in (*places, *places)]
    for racer in racers:
        racer.join()
    assert sorted(outcomes) == sorted((place.name, won) for place in places for won in (False, True))


def test_without_links_and_on_storage_that_takes_no_conditions_one_of_two_wins_as_well(
    tmp_path: Path, forgetful: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*arguments: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(claims, "SETTLE_S", 0.02)  # more than a put to this store takes
    for _ in range(RACES // 10):
        for place in (tmp_path, forgetful):
            (winner,) = race(2, lambda place=place: take(place))
            winner.release()
    assert newest(forgetful)[0].number == newest(tmp_path)[0].number == RACES // 10


def test_who_put_last_has_it_where_a_store_takes_no_conditions(forgetful: UPath) -> None:
    clock = VirtualClock()
    other = Claim(forgetful, 1, "other's")
    clock.during = lambda: other.write(ELSEWHERE | {"token": other.token, "renewed": clock.now})
    with pytest.raises(Held, match="pid 7 on elsewhere"):
        take(forgetful, clock=clock)
    other.check()


def test_on_s3_a_number_is_made_by_a_conditional_put(bucket: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "SETTLE_S", 0)  # nothing to wait for
    for number in range(RACES // 40):
        (winner,) = race(2, lambda: take(bucket))
        assert not Claim(bucket, number + 1, "other's").make({"token": "other's"})
        winner.renew()
        assert in_force([bucket]) == (winner.claim,) == (Claim(bucket, number + 1, winner.claim.token),)
        winner.release()


def test_a_second_driver_is_told_who_it_is_and_since_when(tmp_path: Path) -> None:
    clock = VirtualClock()
    take(tmp_path, clock=clock)
    clock.now += 12
    before = newest(tmp_path)
    with pytest.raises(Held) as told:
        take(tmp_path, clock=clock)
    said = str(told.value)
    for part in (str(tmp_path), f"pid {os.getpid()} on ", "began 2001-09-", "12 s ago", "run_dir=DIR"):
        assert part in said
    assert "\n" not in said and newest(tmp_path) == before


def test_a_driver_elsewhere_that_renews_is_not_waited_for(tmp_path: Path, on_another_machine: Any) -> None:
    clock = VirtualClock()
    other = on_another_machine(tmp_path, clock)
    began = clock.now
    clock.during = lambda: other.renew() if clock.now - began >= RENEW_S else None
    notes: list[str] = []
    with pytest.raises(Held, match="pid 7 on elsewhere"):
        take(tmp_path, notes.append, clock)
    assert clock.now - began < RENEW_S + 5
    (note,) = notes
    assert "pid 7 on elsewhere" in note and f"{LEASE_S:g} s" in note


@pytest.mark.parametrize("ahead", [-7200, 0, 7200])
def test_one_elsewhere_that_is_silent_is_waited_for_whatever_the_clocks_say(
    tmp_path: Path, on_another_machine: Any, ahead: float
) -> None:
    clock, theirs = VirtualClock(), VirtualClock()
    theirs.now += ahead
    other = on_another_machine(tmp_path, theirs)
    began = clock.now
    mine = take(tmp_path, clock=clock)
    assert LEASE_S <= clock.now - began <= LEASE_S + 5
    mine.check()
    with pytest.raises(LeaseLost, match=f"taken over by pid {os.getpid()}"):
        other.check()


def test_one_that_ended_properly_is_not_waited_for(tmp_path: Path, on_another_machine: Any) -> None:
    clock = VirtualClock()
    on_another_machine(tmp_path, clock).release()
    assert take(tmp_path, clock=clock).claim.number == 2 and clock.now == 1e9


def test_a_process_of_this_machine_that_is_gone_is_seen_at_once(tmp_path: Path) -> None:
    code = (
        f"from d1ray.run.lease import take; from pathlib import Path; take(Path({str(tmp_path)!r})); input()"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    while newest(tmp_path)[1] is None:
        assert owner.poll() is None
    with pytest.raises(Held, match=f"pid {owner.pid} on "):
        take(tmp_path)
    owner.kill()  # not yet waited for: it is a zombie
    owner.wait()
    clock = VirtualClock()
    assert take(tmp_path, clock=clock).claim.number == 2 and clock.now == 1e9


def test_another_process_with_the_same_number_is_not_taken_for_the_owner() -> None:
    this = process.this_process()
    assert process.alive(this)
    assert not process.alive(this | {"started": this["started"] - 60})


def test_a_stopped_driver_notices_before_it_writes(tmp_path: Path) -> None:
    clock = VirtualClock()
    stopped = take(tmp_path, clock=clock)
    clock.now += LEASE_S + 1  # its process is there, but nothing of it runs
    stopped.check()  # nobody wanted the folder
    successor = take(tmp_path, clock=clock)
    for act in (stopped.check, stopped.renew, stopped.advance):
        with pytest.raises(LeaseLost, match="nothing more is written"):
            act()
    stopped.release()
    successor.check()


def test_a_renewal_that_crosses_the_taking_over_changes_nothing(tmp_path: Path) -> None:
    clock = VirtualClock()
    slow = take(tmp_path, clock=clock)
    before = slow.claim.read()
    clock.now += LEASE_S + 1
    successor = take(tmp_path, clock=clock)
    slow.claim.write(before)  # it had checked earlier
    successor.check()
    with pytest.raises(LeaseLost):
        slow.check()


def test_a_folder_that_is_removed_is_nobodys(tmp_path: Path) -> None:
    mine = take(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(LeaseLost, match="its claim is gone"):
        mine.check()
    mine.release()


def test_a_new_number_of_the_same_owner_shuts_out_who_had_the_one_before(tmp_path: Path) -> None:
    mine = take(tmp_path)
    (former,) = in_force([tmp_path])
    assert pickle.loads(pickle.dumps(former)) == former == mine.claim
    mine.advance()
    mine.check()
    assert in_force([tmp_path]) == (mine.claim,) and mine.claim.number == 2
    with pytest.raises(LeaseLost):
        former.check()
    mine.release()
    assert in_force([tmp_path]) == ()
    with pytest.raises(LeaseLost):
        mine.check()


def test_within_one_process_a_folder_may_be_opened_again(tmp_path: Path) -> None:
    outer, inner = own(tmp_path), own(tmp_path)
    assert inner is outer
    inner.release()
    outer.check()
    outer.release()
    assert in_force([tmp_path]) == ()
    own(tmp_path).release()


def test_renewing_goes_on_through_storage_that_fails_and_ends_with_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, calls = take(tmp_path), []

    def renew() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("stale file handle")
        raise LeaseLost("taken")

    monkeypatch.setattr(lease, "RENEW_S", 0)
    monkeypatch.setattr(mine, "renew", renew)
    mine.keep_renewing()
    assert len(calls) == 2


def test_a_claim_of_which_a_crash_left_nothing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "PAUSE_S", 0)
    (tmp_path / ".lease").mkdir()
    (tmp_path / ".lease" / "00001.json").touch()
    clock = VirtualClock()
    assert take(tmp_path, clock=clock).claim.number == 2
    assert clock.now - 1e9 >= LEASE_S


# Who writes in a run folder.


def successor(place: Path) -> Lease:
    """A later owner; the one of now is taken for silent."""
    clock = VirtualClock()
    clock.now = 1e11
    return take(place, clock=clock)


def test_a_run_folder_that_was_taken_over_is_not_written_any_more(tmp_path: Path) -> None:
    config = load_config("sudoku-tiny", [])
    with RunFolder.open(tmp_path, config) as run:
        run.log({"stage": "rl", "step": 1})
        run.write_summary([], {})
        before = {file: file.read_bytes() for file in tmp_path.rglob("*.json*") if ".lease" not in file.parts}
        new = successor(tmp_path)
        for write in (
            lambda: run.log({"stage": "rl", "step": 2}),
            lambda: run.note_dropped({"step": 2}),
            lambda: run.truncate_metrics("rl", 0),
            lambda: run.set_rollouts_aside(0),
            lambda: run.note_saved("rl", 2),
            lambda: run.write_summary([{}], {}),
            run.check,
            run.fence,
        ):
            with pytest.raises(LeaseLost):
                write()
    new.check()
    assert {file: file.read_bytes() for file in before} == before


def test_a_driver_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    config = load_config("sudoku-tiny", ["rl.steps=5"])
    owner = take(tmp_path / "run")
    with pytest.raises(Held):
        RunFolder.open(tmp_path / "run", config)
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".lease"]
    owner.release()
    RunFolder.open(tmp_path / "run", config).close()
    assert in_force([tmp_path / "run"]) == ()


def test_checkpoints_elsewhere_have_one_owner_too(tmp_path: Path) -> None:
    config = load_config("sudoku-tiny", [f"checkpoint_path={tmp_path / 'elsewhere'}"])
    owner = take(tmp_path / "elsewhere")
    with pytest.raises(Held, match="elsewhere is in use"):
        RunFolder.open(tmp_path / "run", config)
    assert in_force([tmp_path / "run"]) == ()
    owner.release()
    with RunFolder.open(tmp_path / "run", config) as run:
        assert [claim.place.name for claim in run.claims] == ["run", "elsewhere"]


def test_a_writer_of_the_last_owner_adds_nothing_to_a_checkpoint_of_the_next(
    tmp_path: Path, make_text_model: Any, tokenizer: Any
) -> None:
    root, former = tmp_path / "checkpoints", take(tmp_path)
    save_checkpoint(root, 3, make_text_model(1), tokenizer, {}, {"of": 1}, 3, claims=[former.claim])
    zombie = CheckpointWriter.__new__(CheckpointWriter)  # it hung before it wrote
    zombie.folder, zombie.claims, zombie.files, zombie.error = root / "step-00004", [former.claim], {}, ""
    zombie.world, zombie.rank, zombie.root, zombie.step, zombie.keep, zombie.best = 1, 0, root, 4, 1, None
    new = successor(tmp_path)
    save_checkpoint(root, 4, make_text_model(2), tokenizer, {}, {"of": 2}, 3, claims=[new.claim])
    zombie._write()
    assert "LeaseLost" in zombie.error
    zombie.thread = threading.Thread(target=lambda: None)
    zombie.thread.start()
    with pytest.raises(LeaseLost):
        zombie.finish()
    with pytest.raises(LeaseLost):
        save_checkpoint(root, 4, make_text_model(1), tokenizer, {}, {"of": 1}, 1, claims=[former.claim])
    assert [found.step for found in checkpoint.resumable(checkpoint.survey(root))] == [4, 3]
    assert checkpoint.load_state(checkpoint.latest(root)) == {"of": 2}


def test_what_it_wrote_before_its_manifest_never_counts(
    tmp_path: Path, make_text_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place changes hands while tensors are written: the manifest is refused."""
    import d1ray.run.checkpoint_writer as writer

    former, digest = take(tmp_path), writer.digest
    monkeypatch.setattr(writer, "digest", lambda file: (successor(tmp_path), digest(file))[1])
    with pytest.raises(LeaseLost):
        save_checkpoint(tmp_path / "c", 4, make_text_model(1), tokenizer, {}, {}, 1, claims=[former.claim])
    (found,) = checkpoint.survey(tmp_path / "c")
    assert found.standing is checkpoint.Standing.UNFINISHED


# The command.


def test_a_second_command_on_a_folder_in_use_is_one_line_and_exit_status_2(tmp_path: Path) -> None:
    run = tmp_path / "run"
    owner = driver(run)
    try:
        command = [sys.executable, "-m", "d1ray", "train", "sudoku-tiny", f"run_dir={run}"]
        second = subprocess.run(command, capture_output=True, text=True, timeout=100)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    (line,) = second.stderr.strip().splitlines()
    assert second.returncode == 2 and f"in use by pid {owner.pid} on " in line
    assert [file.name for file in run.iterdir()] == [".lease"]
    assert len(list((run / ".lease").glob("*.json"))) == 1
    assert json.loads((run / ".lease" / "00001.json").read_text())["pid"] == owner.pid
