"""seccomp (Linux): a process gives up system calls, by a filter that the kernel runs before each.

The filter is a list of calls that fail from then on, with "operation not permitted". It covers what Landlock
does not, or not in every kernel: all sockets, not only TCP; new processes and programs; changes of metadata.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

GIVEN_UP = {  # numbers on x86_64 and aarch64; None where there is no such call
    "socket": (41, 198),
    "io_uring_setup": (425, 425),  # it opens files and sockets by itself
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "pidfd_open": (434, 434),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "unshare": (272, 97),
    "keyctl": (250, 219),
    "truncate": (76, 45),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}
OWN = {"tgkill": (234, 131), "prlimit64": (302, 261)}  # are left for this process: to abort, and to ask
CLONE3 = 435  # its flags lie in memory, which a filter cannot read; without it libraries use clone
CLONE = {"x86_64": 56, "aarch64": 220}
SECCOMP = {"x86_64": 317, "aarch64": 277}
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE_THREAD = 0x10000
SET_MODE_FILTER, ALL_THREADS = 1, 1
ALLOW, ERROR = 0x7FFF0000, 0x00050000
LOAD, EQUAL, AT_LEAST, HAS_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # opcodes of classic BPF
NUMBER, MACHINE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
X32 = 0x40000000  # numbers from here on are those of x86_64's other, 32-bit interface


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def give_up() -> None:
    """From now on the calls of ``GIVEN_UP`` fail, in every thread; of ``clone`` only threads are left.

    Needs ``PR_SET_NO_NEW_PRIVS``. Raises ``OSError`` where the kernel or the container does not allow it.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in SECCOMP or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, f"no filter for {sys.platform} on {machine}")
    code = filter_for(machine, os.getpid())
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    call = [ctypes.c_long(n) for n in (SECCOMP[machine], SET_MODE_FILTER, ALL_THREADS)]
    if libc.syscall(*call, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def filter_for(machine: str, own: int) -> bytes:
    """The filter as BPF instructions, 8 bytes each, for the process ``own``."""
    refuse = _step(RETURN, ERROR | errno.EPERM)
    steps = [_step(LOAD, MACHINE), _step(EQUAL, ARCHITECTURE[machine], 1, 0), refuse, _step(LOAD, NUMBER)]
    if machine == "x86_64":
        steps += [_step(AT_LEAST, X32, 0, 1), refuse]
    for numbers in GIVEN_UP.values():
        number = numbers[list(SECCOMP).index(machine)]
        if number is not None:
            steps += [_step(EQUAL, number, 0, 1), refuse]
    for numbers in OWN.values():
        number = numbers[list(SECCOMP).index(machine)]
        of_whom = [_step(LOAD, FIRST_ARGUMENT), _step(EQUAL, own, 1, 0), _step(EQUAL, 0, 0, 1)]
        steps += [_step(EQUAL, number, 0, 5), *of_whom, _step(RETURN, ALLOW), refuse]
    steps += [_step(EQUAL, CLONE3, 0, 1), _step(RETURN, ERROR | errno.ENOSYS)]
    steps += [_step(EQUAL, CLONE[machine], 0, 3), _step(LOAD, FIRST_ARGUMENT)]
    steps += [_step(HAS_BIT, CLONE_THREAD, 1, 0), refuse, _step(RETURN, ALLOW)]
    return b"".join(steps)


def _step(opcode: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    """One instruction; a comparison skips that many of the next ones."""
    return struct.pack("=HBBI", opcode, if_so, if_not, value)
