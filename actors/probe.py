"""Probe: looks at one node of the cluster, for `d1ray doctor`."""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

from d1ray.config.kinds import load_task
from d1ray.tasks.checker import Checker

PACKAGES = ("d1ray", "ray", "torch", "transformers", "pyarrow", "peft")


class Probe:
    """What a node has, what it can write, and whom it can reach."""

    def facts(self, folder: Path) -> dict[str, Any]:
        """Versions, shared memory, GPUs, and the free disk where ``folder`` is or will be."""
        import torch

        existing = next(path for path in (folder, *folder.parents) if path.exists())
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return {
            "host": socket.gethostname(),
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            "shm": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").exists() else 0,
            "disk": shutil.disk_usage(existing).free,
            "gpu_memory": [gpu.total_memory for gpu in gpus],
        }

    def unconfined(self) -> str:
        """What a check of a completion could do here that it should not, as a sentence; "" where nothing."""
        with Checker(load_task("countdown")) as checker:
            return checker.unconfined()

    def sees(self, folder: Path, name: str, said: str, writes: bool = True) -> str:
        """Reads the driver's file in ``folder``, and ``writes`` one of its own; "" or what went wrong."""
        try:
            if (folder / name).read_text() != said:
                return f"{folder / name} holds something else than what the driver wrote"
            if writes:
                (folder / f"{name}.{os.getpid()}").write_text(said)
        except OSError as error:
            return f"{error}"
        return ""

    def listen(self, host: str) -> int:
        """Accepts one connection at a free port of ``host``, whose number it returns."""
        server = socket.create_server((host, 0))
        server.settimeout(60)

        def accept() -> None:
            with server, contextlib.suppress(OSError):  # if nobody comes, the asking side says so
                server.accept()[0].close()

        threading.Thread(target=accept, daemon=True).start()
        return int(server.getsockname()[1])

    def reaches(self, host: str, port: int) -> str:
        """Connects to another node; "" or what went wrong."""
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            return str(error)
        return ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "working directory" if package == "d1ray" else "missing"
