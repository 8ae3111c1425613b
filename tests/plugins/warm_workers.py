"""Ray workers in a tenth of a second: forks of one process that has imported torch and the actors.

A worker that starts as usual takes three seconds of a core to import what an actor needs, and a run of
seconds starts three to eight of them. What raylet runs to start a worker (``setup_worker_path``) is here a
script that hands its arguments, environment, priority and outputs to the process that has everything
imported, which forks. From there on it is Ray's own worker, with Ray's own code. Where a worker needs another
interpreter or command (``runtime_env``) it starts as usual.

This file is the process (``python warm_workers.py SOCKET``), the script, and the means to use both.
"""

import array
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ADDRESS = "D1RAY_TEST_WARM_WORKERS"  # of the socket, as workers' environments have it
IMPORTED = [  # by actors, but for Ray itself: it reads its settings from the environment when it is imported
    "d1ray.rl.learning",
    "d1ray.rl.rollout",
    "d1ray.rl.scoring",
    "d1ray.sft.masked_training",
    "d1ray.sft.model",
    "d1ray.models.save",
    "d1ray.models.sharding",
    "d1ray.run.checkpoint_writer",
    "d1ray.tasks.source",
    "requests",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "transformers.models.auto",
    "transformers.tokenization_utils_tokenizers",
]


@contextmanager
def warm_workers(folder: Path) -> Iterator[None]:
    """The raylets that this process starts meanwhile have warm workers."""
    import ray._private.services as services

    address, start_raylet = folder / "warm", services.start_raylet

    def started(*arguments: Any, **named: Any) -> Any:
        bound = inspect.signature(start_raylet).bind(*arguments, **named)
        bound.arguments["setup_worker_path"] = __file__
        return start_raylet(*bound.args, **bound.kwargs)

    server = subprocess.Popen([sys.executable, __file__, address], stdin=subprocess.DEVNULL)
    os.environ[ADDRESS], services.start_raylet = str(address), started
    try:
        end = time.monotonic() + 120
        while not address.exists():
            assert server.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        yield
    finally:
        services.start_raylet = start_raylet
        del os.environ[ADDRESS]
        server.terminate()
        server.wait(timeout=60)


def serve(address: str) -> None:
    """Forks a worker for each connection."""
    import importlib

    for module in IMPORTED:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    os.rename(f"{address}.new", address)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            become(connection)
        connection.close()


def become(connection: socket.socket) -> None:
    """This process becomes the worker that ``connection`` asks for."""
    outputs = array.array("i")
    message, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_LEN(2 * outputs.itemsize))
    outputs.frombytes(ancillary[0][2])
    while part := connection.recv(2**16):
        message += part
    connection.close()
    asked = json.loads(message)
    for output, standard in zip(outputs, (1, 2), strict=True):
        os.dup2(output, standard)
        os.close(output)
    os.setsid()
    os.nice(asked["nice"] - os.nice(0))
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = asked["arguments"]
    runpy.run_path(sys.argv[0], run_name="__main__")
    os._exit(0)


def ask() -> None:
    """What raylet runs: asks for a worker."""
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    known, arguments = parser.parse_known_args()
    context = json.loads(known.serialized_runtime_env_context)
    other = {"command_prefix", "override_worker_entrypoint", "java_jars"}
    executable = context.get("py_executable") or sys.executable
    if executable != sys.executable or any(context.get(name) for name in other):
        import ray._private.workers as workers

        usual = str(Path(workers.__path__[0]) / "setup_worker.py")
        os.execv(sys.executable, [sys.executable, usual, *sys.argv[1:]])
    environment = os.environ | context.get("env_vars", {})
    asked = {
        "arguments": arguments,
        "environment": environment,
        "folder": os.getcwd(),
        "nice": os.nice(0),
    }
    message = json.dumps(asked).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[ADDRESS])
    outputs = array.array("i", [1, 2])
    connection.sendmsg([message[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, outputs)])
    connection.sendall(message[1:])


if __name__ == "__main__":
    serve(sys.argv[1]) if len(sys.argv) == 2 else ask()
