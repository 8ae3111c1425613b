"""Peak memory of a run: this process and everything it started, on the local machine only."""

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

SAMPLING_SHARE = 0.02
CONFIRM_AFTER_S = 0.05


@dataclass(frozen=True)
class MemorySample:
    """Memory of a process tree at one moment: the sum in bytes over ``processes`` processes."""

    total_bytes: int
    processes: int


class PeakMemory:
    """Samples the memory of this process and its descendants in a daemon thread and keeps the peak.

    A local Ray instance (object store, raylet, actors) descends from the driver and is counted. Other
    machines are not, nor is a Ray instance that was already running when the driver connected to it.

    Processes are counted by PSS, which divides a shared page among those that map it, so the object
    store and forked pages count once. Where PSS is not available (not Linux, another user's process),
    RSS is used and shared pages count once per process. A peak shorter than the interval may be missed.

    A new peak counts as far as a second look confirms it: a process just started by vfork, which has not
    reached its exec, shows all of its parent's memory as its own.

    Samples are ``interval_s`` seconds apart, or further if sampling would take more than 2 % of one core.

    Example:
        with PeakMemory() as memory:
            work()
        print(memory.peak_bytes)
    """

    def __init__(self, interval_s: float = 1.0) -> None:
        if interval_s <= 0:
            raise ValueError(f"interval_s must be positive, got {interval_s}")
        self.peak = MemorySample(0, 0)
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="peak-memory", daemon=True)

    @property
    def peak_bytes(self) -> int:
        """The largest sum seen so far, in bytes; final when the block has ended."""
        return self.peak.total_bytes

    @property
    def peak_processes(self) -> int:
        """How many processes made up ``peak_bytes``."""
        return self.peak.processes

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join(timeout=10)

    def _sample_until_stopped(self) -> None:
        """Samples at once, then at intervals, and a last time when the block ends."""
        while True:
            stopping = self._stopped.is_set()
            before = time.thread_time()
            sample = tree_memory()
            if sample.total_bytes > self.peak.total_bytes:
                time.sleep(CONFIRM_AFTER_S)
                confirmed = min(sample, tree_memory(), key=lambda seen: seen.total_bytes)
                self.peak = max(self.peak, confirmed, key=lambda seen: seen.total_bytes)
            if stopping:
                return
            cost_s = time.thread_time() - before
            self._stopped.wait(max(self._interval_s, cost_s / SAMPLING_SHARE))


def tree_memory() -> MemorySample:
    """Memory of this process and its descendants now. Processes that end meanwhile are left out."""
    try:
        this = psutil.Process()
        tree = [this, *this.children(recursive=True)]
    except (psutil.Error, OSError):
        return MemorySample(0, 0)
    sizes = [size for process in tree if (size := _process_bytes(process)) is not None]
    return MemorySample(sum(sizes), len(sizes))


def _process_bytes(process: psutil.Process) -> int | None:
    """PSS where it can be read, else RSS; None for a process that is gone."""
    try:
        memory = process.memory_full_info()
        return int(getattr(memory, "pss", memory.rss))
    except psutil.AccessDenied:
        pass  # another user's process: its RSS is public
    except (psutil.Error, OSError):
        return None
    try:
        return int(process.memory_info().rss)
    except (psutil.Error, OSError):
        return None
