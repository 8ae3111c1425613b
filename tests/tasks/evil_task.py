"""A task whose judge does what its completion says, to see what checking survives."""

import gc
import importlib
import os
import signal
import socket
import subprocess
import time
import zoneinfo
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Literal

from d1ray.tasks.task import Example, Score, Task


def send(family: socket.AddressFamily, kind: socket.SocketKind, address: object) -> str:
    with socket.socket(family, kind) as out:
        out.connect(address)  # type: ignore[arg-type]
        out.sendall(b"secret")
    return "sent"


def unix(path: str) -> str:
    return send(socket.AF_UNIX, socket.SOCK_STREAM, path)


def append(path: str) -> int:
    with open(path, "a") as out:
        return out.write("pwned")


def fork(_: str) -> str:
    if os.fork() == 0:
        os._exit(0)
    return f"{os.wait()}"


def in_a_thread(path: str) -> str:
    with ThreadPoolExecutor(1) as threads:
        return str(threads.submit(DEEDS["write"], path).result())


def keep(mib: str) -> int:
    kept.append(bytearray(int(mib) << 20))
    return len(kept)


def hijack(answer: str) -> str:
    """Answers in the process's place, through the socket it finds, and then with something else."""
    [owner] = [found for found in gc.get_objects() if type(found) is socket.socket]
    owner.sendall(answer.encode("latin-1").decode("unicode_escape").encode("latin-1"))
    os._exit(0)


kept: list[bytearray] = []
DEEDS: dict[str, Callable[[str], object]] = {
    "write": lambda path: Path(path).write_text("pwned"),
    "append": append,
    "truncate": lambda path: os.truncate(path, 0),
    "remove": os.remove,
    "mkdir": os.mkdir,
    "chmod": lambda path: os.chmod(path, 0o777),
    "touch": lambda path: os.utime(path, (1, 1)),
    "link": lambda path: os.symlink(path, f"{path}.link"),
    "read": lambda path: Path(path).read_text(),
    "list": lambda path: " ".join(os.listdir(path)),
    "tcp": lambda port: send(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", int(port))),
    "udp": lambda port: send(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", int(port))),
    "unix": unix,
    "signal": lambda pid: os.kill(int(pid), signal.SIGCONT),
    "run": lambda program: subprocess.check_output([program], text=True),
    "shell": lambda command: f"status {os.waitstatus_to_exitcode(os.system(command))}",
    "fork": fork,
    "thread": in_a_thread,
    "import": lambda name: importlib.import_module(name).__name__,
    "random": lambda _: os.urandom(4),
    "zone": lambda _: zoneinfo.ZoneInfo("Europe/Paris"),
    "null": lambda _: Path(os.devnull).write_text("x"),
    "hijack": hijack,
    "keep": keep,
    "pid": lambda _: os.getpid(),
}


def tried(deed: Callable[[str], object], where: str) -> str:
    try:
        return f"done: {deed(where)}"
    except OSError as error:
        return type(error).__name__


class Evil(Task):
    rewards: ClassVar[tuple[str, ...]] = ("r",)

    name: Literal["evil"] = "evil"
    template: str = "?"

    def judge(self, example: Example, text: str) -> Score:
        deed, _, where = text.partition(" ")
        if deed in DEEDS:
            return Score({"r": 1.0}, True, 1.0, True, parsed=tried(DEEDS[deed], where))
        match text:
            case "loop":
                while True:
                    pass
            case "sleep":
                time.sleep(1000)
            case "exit":
                os._exit(3)
            case "memory":
                return Score({"r": float(len(bytearray(2**33)))}, True, 1.0, True)
            case "raise":
                raise RuntimeError("no")
            case "nan":
                return Score({"r": float("nan")}, True, 1.0, True)
            case "environment":
                started = Path("/proc/self/environ")  # also what the interpreter has not kept
                names = started.read_text() if started.exists() else ""
                text = " ".join(sorted({*os.environ, *(pair.split("=")[0] for pair in names.split("\0"))}))
            case "surrogate":
                return Score({"r": 1.0}, True, 1.0, True, parsed="\ud800" + "x" * 10_000)
        return Score({"r": 1.0}, True, 1.0, True, parsed=text)


class Unprepared(Evil):
    def prepare(self) -> None:
        raise RuntimeError("no data set here")


class Free(Evil):
    """The same, in processes that are not confined."""

    confined: ClassVar[bool] = False
