"""How many completions are checked a second, in two processes."""

import os
import time

import pytest

from d1ray.config.kinds import load_task
from d1ray.tasks.checker import Checker

REASONING = "<reasoning>\n" + "We add 20 and 23, which gives 43, and go on. " * 20 + "\n</reasoning>\n"
TARGETS = {  # checks a second
    "countdown": (2000, {"nums": [44, 19, 35], "target": 98}, "44 + 19 + 35 = 98"),
    "gsm8k": (500, {"answer": "#### 43"}, "43"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_checks_a_second(name):
    target, row, answer = TARGETS[name]
    task = load_task(name)
    pairs = [(task.example(row), f"{REASONING}<answer>\n\\boxed{{{answer}}}\n</answer>")] * 10_000
    with Checker(task, processes=min(2, os.cpu_count() or 1)) as checker:
        checker.check(pairs[:64])
        started = time.perf_counter()
        scores = checker.check(pairs)
        rate = len(pairs) / (time.perf_counter() - started)
    print(f"\n{name}: {rate:,.0f} checks a second (target {target:,})")
    assert all(score.correct for score in scores)
    assert rate >= target
