"""What a checking process may still do once it holds model output: compute, and answer its owner.

No check runs a completion as code. Should one do so after all, by a fault in a library that it calls, the
code finds no network, no file to write, no program to start, no other process, and to read only what Python
is made of. docs/security.md says what of this holds on which system.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from d1ray.tasks import landlock, seccomp

PR_SET_NO_NEW_PRIVS = 38
READABLE = (  # beside Python and what it imports
    *("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/proc/self"),
    *("/proc/cpuinfo", "/proc/meminfo", "/dev/zero", "/dev/random", "/dev/urandom"),
)


def confine() -> str:
    """Confines this process for good. Returns what could not be shut, as a sentence; "" where all is.

    Threads that run already keep what Landlock takes; modules imported and files opened before stay.
    """
    if sys.platform != "linux":
        return f"{sys.platform} has no means to take files and the network from a process"
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    open_still = []
    try:
        landlock.give_up([*map(Path, READABLE), *_imported_from()], map(Path, sys.path))
    except OSError as error:
        _write_nothing()
        open_still.append(f"files can be read, other processes' environments among them (Landlock: {error})")
    try:
        seccomp.give_up()
    except OSError as error:
        open_still.append(f"the network can be reached and programs started (seccomp: {error})")
    return "; ".join(open_still)


def _write_nothing() -> None:
    """Where there is no Landlock: files can still be made and removed, but hold nothing."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # printing into a log file would be an error
        os.dup2(null, stream)


def _imported_from() -> Iterator[Path]:
    """What may be imported: all of Python's own folders, and the modules and packages of others.

    A folder on ``sys.path`` may be anybody's working directory, with secrets beside its modules.
    """
    own = [Path(prefix) for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix}]
    yield from own
    for entry in map(Path, sys.path):
        if any(entry.is_relative_to(prefix) for prefix in own):
            continue
        if entry.is_file():  # a zip
            yield entry
        elif entry.is_dir():
            for path in entry.iterdir():
                if path.suffix in (".py", ".so", ".dist-info") or (path / "__init__.py").is_file():
                    yield path
