"""Which process this is, and whether another one still runs."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

START_S = 5.0  # by which two readings of when a process started may differ


def this_process() -> dict[str, Any]:
    """Host, machine, process id and start of this process."""
    started = psutil.Process().create_time()
    return {"host": socket.gethostname(), "machine": machine(), "pid": os.getpid(), "started": started}


def machine() -> str:
    """The boot and the container of this process: where they are the same, so is what a process id means."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def alive(process: Mapping[str, Any]) -> bool:
    """Whether a process of this machine, as ``this_process`` said, still runs."""
    try:
        now = psutil.Process(process["pid"])
        same = abs(now.create_time() - process["started"]) < START_S
        return same and now.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
