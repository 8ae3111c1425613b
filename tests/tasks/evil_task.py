"""A task whose judge does what its completion says, to see what checking survives."""

import os
import time
from pathlib import Path
from typing import ClassVar, Literal

from d1ray.tasks.task import Example, Score, Task


class Evil(Task):
    rewards: ClassVar[tuple[str, ...]] = ("r",)

    name: Literal["evil"] = "evil"
    template: str = "?"

    def judge(self, example: Example, text: str) -> Score:
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
