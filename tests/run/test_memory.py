import subprocess
import sys
import threading
import time

import psutil
import pytest

from d1ray.run import memory
from d1ray.run.memory import MemorySample, PeakMemory

MB = 1_000_000
HOLD_100_MB = "held = b'x' * 100_000_000; print('ready', flush=True); input()"
FORK_3_SHARING_100_MB = """
import os
held = b'x' * 100_000_000
for _ in range(3):
    if os.fork() == 0:
        import signal; signal.pause()
print('ready', flush=True)
input()
import signal; os.killpg(0, signal.SIGKILL)
"""


# In a process of its own, which has no children but this one: pytest's may come and go.
MEASURE = """
import subprocess, sys
from d1ray.run.memory import PeakMemory
child = subprocess.Popen(
    [sys.executable, "-S", "-c", sys.argv[1]],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
)
assert child.stdout.readline() == b"ready\\n"
with PeakMemory(interval_s=60) as peak:
    pass
child.communicate(b"\\n")
print(peak.peak_bytes, peak.peak_processes)
"""


def peak_beside(program: str) -> MemorySample:
    """The peak of a process that measures itself and ``program``, its child, while that waits for input."""
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, program], capture_output=True, text=True, timeout=60, check=True
    )
    total_bytes, processes = map(int, measured.stdout.split())
    return MemorySample(total_bytes, processes)


def test_memory_of_a_child_process_is_seen():
    alone = peak_beside("print('ready', flush=True); input()")
    beside = peak_beside(HOLD_100_MB)
    assert beside.total_bytes - alone.total_bytes == pytest.approx(100 * MB, abs=20 * MB)
    assert beside.processes == alone.processes == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PSS is Linux's")
def test_memory_shared_by_several_processes_counts_once():
    alone = peak_beside("print('ready', flush=True); input()")
    shared = peak_beside(FORK_3_SHARING_100_MB)
    assert shared.processes == 5
    assert shared.total_bytes - alone.total_bytes < 200 * MB  # RSS would say 400 MB


def samples_of(monkeypatch, *samples: MemorySample) -> PeakMemory:
    """What a ``PeakMemory`` makes of these samples, and of one process of 1 byte ever after."""
    remaining = iter(samples)
    drained = threading.Event()

    def next_sample() -> MemorySample:
        sample = next(remaining, None)
        if sample is None:
            drained.set()
        return sample or MemorySample(1, 1)

    monkeypatch.setattr(memory, "tree_memory", next_sample)
    monkeypatch.setattr(memory, "CONFIRM_AFTER_S", 0)
    with PeakMemory(interval_s=0.001) as peak:
        assert drained.wait(timeout=5)
    return peak


def test_the_peak_stays_when_memory_is_freed(monkeypatch):
    peak = samples_of(monkeypatch, *[MemorySample(9, 3)] * 2, *[MemorySample(2, 1)] * 3)
    assert (peak.peak_bytes, peak.peak_processes) == (9, 3)


def test_a_peak_that_a_second_look_does_not_confirm_is_not_one(monkeypatch):
    settled, between_vfork_and_exec = MemorySample(5, 2), MemorySample(10, 2)
    peak = samples_of(monkeypatch, settled, settled, between_vfork_and_exec, settled)
    assert peak.peak_bytes == 5


def test_processes_that_vanish_are_left_out(monkeypatch):
    class Gone(psutil.Process):
        def memory_full_info(self):
            raise psutil.NoSuchProcess(self.pid)

    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [Gone()])
    assert memory.tree_memory().processes == 1


def test_processes_of_another_user_count_by_rss(monkeypatch):
    def denied(self):
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", denied)
    assert memory.tree_memory().total_bytes > MB


def test_sampling_takes_little_of_a_core(monkeypatch):
    def costly() -> MemorySample:
        burn_until = time.thread_time() + 0.005
        while time.thread_time() < burn_until:
            pass
        calls.append(1)
        return MemorySample(1, 1)

    calls: list[int] = []
    monkeypatch.setattr(memory, "tree_memory", costly)
    with PeakMemory(interval_s=0.001):
        time.sleep(0.6)
    # 5 ms each at 2 % of a core: a first and its confirmation, one at 0.5 s, and a last one at the end.
    assert 2 <= len(calls) <= 4


def test_an_interval_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        PeakMemory(interval_s=0)
