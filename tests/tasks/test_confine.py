"""What code could do in a checking process, had it got there: each deed works where it is not confined."""

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from d1ray.tasks import checker, landlock, seccomp
from d1ray.tasks.checker import Checker
from d1ray.tasks.task import Example

EXAMPLE = Example("evil", "k", "?", {})
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux confines a process")
LANDLOCK = pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")


@pytest.fixture
def evil(monkeypatch):
    """The tasks of evil_task.py, importable in checking processes too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import evil_task

    return evil_task


@pytest.fixture
def secret(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ray_canary")
    (tmp_path / "token").write_text("hf_canary")
    (tmp_path / "old").write_text("")
    return tmp_path / "token"


@pytest.fixture
def ports(tmp_path, monkeypatch):
    """What listens: ``tcp``, ``udp`` and ``unix``."""
    monkeypatch.chdir(tmp_path)
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(type=socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        udp.bind(("127.0.0.1", 0))
        unix.bind("socket")  # a short path
        unix.listen()
        yield {"tcp": tcp.getsockname()[1], "udp": udp.getsockname()[1], "unix": "socket"}


def file_deeds(secret: Path) -> list[str]:
    folder = secret.parent
    return [
        f"read {secret}",
        f"list {folder}",
        f"read /proc/{os.getpid()}/environ",
        f"read /proc/{os.getppid()}/environ",
        f"write {folder}/new",
        f"thread {folder}/new",
        f"append {secret}",
        f"mkdir {folder}/folder",
        f"link {secret}",
        f"truncate {secret}",
        f"remove {folder}/old",
    ]


def call_deeds(secret: Path, ports: dict[str, object]) -> list[str]:
    return [
        *(f"{kind} {place}" for kind, place in ports.items()),
        *(f"signal {os.getpid()}", f"chmod {secret}", f"touch {secret}", "run true", "fork"),
    ]


def outcomes(task, deeds):
    with Checker(task, timeout_s=10) as checker:
        scores = checker.check([(EXAMPLE, deed) for deed in deeds])
    return {deed: score.parsed or score.failure for deed, score in zip(deeds, scores, strict=True)}


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.lstat().st_mtime_ns, path.lstat().st_mode) for path in folder.iterdir()}


@LANDLOCK
def test_a_check_writes_no_file_and_reads_no_secret(evil, secret):
    before = state(secret.parent)
    found = outcomes(evil.Evil(), file_deeds(secret))
    assert found == dict.fromkeys(found, "PermissionError")
    assert state(secret.parent) == before


@LINUX
def test_a_check_reaches_no_network_and_no_other_process(evil, secret, ports):
    before = state(secret.parent)
    found = outcomes(evil.Evil(), call_deeds(secret, ports))
    assert found == dict.fromkeys(found, "PermissionError")
    assert outcomes(evil.Evil(), ["shell true"]) in (
        {"shell true": "done: status 127"},
        {"shell true": "done: status -1"},
    )
    assert state(secret.parent) == before


@LINUX
def test_without_the_confinement_each_of_these_is_done(evil, secret, ports):
    deeds = [*call_deeds(secret, ports), *file_deeds(secret)]
    found = outcomes(evil.Free(), deeds)
    assert [deed for deed, said in found.items() if not said.startswith("done: ")] == []
    assert found[f"read {secret}"] == "done: hf_canary"
    assert found["run true"] == "done: "


def test_what_a_check_may_need_is_still_there(evil):
    """Modules that are not yet imported, data beside them, the time zone, randomness, threads."""
    found = outcomes(
        evil.Evil(), ["import colorsys", "import pygments.lexers.python", "random", "zone", "null"]
    )
    assert all(said.startswith("done: ") for said in found.values()), found


# Each layer by itself

PROGRAM = """
import ctypes, json, socket, sys
from pathlib import Path
from d1ray.tasks import confine, landlock, seccomp

def gone():
    raise OSError("none here")

def tried(deed):
    try:
        deed()
        return "done"
    except OSError as error:
        return type(error).__name__

without, folder, port = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if without == "landlock":
    landlock.give_up = lambda *_: gone()
if without == "seccomp":
    seccomp.give_up = gone
out = open(folder / "out", "w")
said = confine.confine()
print("a check may print")
found = {
    "said": said,
    "write": tried(lambda: (folder / "new").write_text("pwned")),
    "read": tried(lambda: (folder / "old").read_text()),
    "tcp": tried(lambda: socket.create_connection(("127.0.0.1", port))),
}
import os, resource, signal, threading
if without == "landlock":
    def signalled(pid):
        if ctypes.CDLL(None, use_errno=True).tgkill(pid, pid, signal.SIGCONT):
            raise OSError(ctypes.get_errno(), "tgkill")
    nothing = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    found |= {
        "signal": tried(lambda: signalled(os.getppid())),
        "limit": tried(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, nothing)),
        "truncate": tried(lambda: os.truncate(folder / "old", 0)),
        "own signal": tried(lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGCONT)),
        "own limit": tried(lambda: resource.prlimit(0, resource.RLIMIT_CPU)),
    }
sys.stdin.close()
os.write(int(sys.argv[4]), json.dumps(found).encode())
"""


def left(without: str, folder: Path, port: int) -> dict[str, str]:
    """What a process confined but for one layer says and can do."""
    (folder / "old").write_text("")
    ours, theirs = os.pipe()
    command = [sys.executable, "-c", PROGRAM, without, str(folder), str(port), str(theirs)]
    subprocess.run(command, pass_fds=[theirs], check=True, timeout=60)
    os.close(theirs)
    with open(ours) as answer:
        found: dict[str, str] = json.load(answer)
    return found


@pytest.mark.skipif(landlock.version() < 4, reason="Landlock here knows no TCP")
def test_landlock_alone_shuts_files_and_tcp(tmp_path, ports):
    found = left("seccomp", tmp_path, ports["tcp"])
    assert found.pop("said").startswith("the network can be reached")
    assert found == dict.fromkeys(found, "PermissionError")


@LINUX
def test_seccomp_alone_shuts_the_network_and_files_stay_empty(tmp_path, ports):
    found = left("landlock", tmp_path, ports["tcp"])
    assert found["said"].startswith("files can be read")
    assert (found["read"], found["write"], found["tcp"]) == ("done", "OSError", "PermissionError")
    assert (found["signal"], found["limit"], found["truncate"]) == ("PermissionError",) * 3
    assert (found["own signal"], found["own limit"]) == ("done", "done")
    assert not (tmp_path / "new").read_text()


# What the owner makes of it


@pytest.mark.parametrize(
    "answer",
    [
        "cos\\nsystem\\n(S'touch pwned'\\ntR.",  # a pickle
        '{"components": {"r": Infinity}, "correct": true, "partial": 1.0, "formatted": true}\\n',
        '{"components": {"r": "9"}, "correct": true, "partial": 1.0, "formatted": true}\\n',
        "[" * 400 + "\\n",
        "9" * 400 + "\\n",
        "\\xff\\xfe\\n",
        "\\n\\n\\n",
        "{}\\n",
    ],
)
def test_a_process_that_was_taken_over_says_nothing_but_a_score(evil, tmp_path, monkeypatch, answer):
    monkeypatch.chdir(tmp_path)
    with Checker(evil.Evil(), timeout_s=5) as checker:
        scores = checker.check([(EXAMPLE, text) for text in ("a", f"hijack {answer}", "b")])
    assert [score.failure for score in scores] == ["", "crash", ""]
    assert [score.parsed for score in scores] == ["a", None, "b"]
    assert not list(tmp_path.iterdir())


def test_what_is_not_confined_is_said_once(monkeypatch, caplog):
    checker._say.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            checker._say("")
            checker._say("files can be read")
    assert caplog.messages == [
        "checks of completions are not fully confined: files can be read (docs/security.md)"
    ]


@LINUX
def test_the_filter_is_one_that_the_kernel_takes_for_either_machine():
    for machine in seccomp.SECCOMP:
        assert len(seccomp.filter_for(machine, own=7)) % 8 == 0
