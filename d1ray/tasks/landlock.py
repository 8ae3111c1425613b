"""Landlock (Linux 5.13 and newer): a process gives up files, TCP and other processes, by three system calls.

Structures, bits and flags are those of ``linux/landlock.h``
(https://docs.kernel.org/userspace-api/landlock.html); the calls have the same numbers on every architecture.
"""

import ctypes
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
ASK_VERSION, PATH_BENEATH = 1, 1
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
TCP = 0b11  # bind, connect
OUTSIDE = 0b11  # abstract Unix sockets and signals of processes that have not given up the same


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """Landlock's version here; 0 where there is none."""
    return max(0, _call(CREATE_RULESET, None, 0, ASK_VERSION)) if sys.platform == "linux" else 0


def give_up(files: Iterable[Path], listed: Iterable[Path]) -> None:
    """From now on this thread, and what it starts, opens only what lies at or beneath ``files``, for reading.

    Neither does it read the memory or environment of a process that has not given up the same. ``listed`` are
    folders of which names may be listed. ``/dev/null`` may be written. Metadata (``stat``) stays visible.

    Needs ``PR_SET_NO_NEW_PRIVS``. Raises ``OSError`` where ``version()`` is 0.
    """
    abi = version()
    every = (1 << (13 + sum(abi >= since for since in (2, 3, 5)))) - 1  # 2: linking, 3: truncating, 5: ioctl
    asked = _Ruleset(every, TCP if abi >= 4 else 0, OUTSIDE if abi >= 6 else 0)
    rules = _checked(_call(CREATE_RULESET, ctypes.byref(asked), ctypes.sizeof(asked), 0))
    try:
        for path in files:
            _allow(rules, path, READ_FILE | READ_DIR)
        for path in listed:
            _allow(rules, path, READ_DIR)
        _allow(rules, Path(os.devnull), READ_FILE | WRITE_FILE)
        _checked(_call(RESTRICT_SELF, rules, 0))
    finally:
        os.close(rules)


def _allow(rules: int, path: Path, access: int) -> None:
    with suppress(FileNotFoundError, PermissionError, NotADirectoryError):  # nothing there to read
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            allowed = access if path.is_dir() else access & (READ_FILE | WRITE_FILE)
            _checked(_call(ADD_RULE, rules, PATH_BENEATH, ctypes.byref(_Beneath(allowed, place)), 0))
        finally:
            os.close(place)


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    whole = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return int(libc.syscall(ctypes.c_long(number), *whole))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
