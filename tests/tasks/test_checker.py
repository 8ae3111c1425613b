"""Checks in subprocesses: what goes wrong stays with the completion that did it."""

import os
import signal
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import psutil
import pytest

from d1ray.config.kinds import load_task
from d1ray.tasks import checker as checker_module
from d1ray.tasks.checker import CHUNK, Checker
from d1ray.tasks.task import Example

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def evil():
    """The task of evil_task.py, importable in this process's children too."""
    sys.path.insert(0, str(HERE))
    try:
        import evil_task

        yield evil_task.Evil()
    finally:
        sys.path.remove(str(HERE))


EXAMPLE = Example("evil", "k", "?", {})


def test_hangs_crashes_and_bombs_score_nothing_and_their_neighbours_score(evil):
    texts = ["a", "loop", "b", "exit", "memory", "raise", "nan", "surrogate", "sleep", "c"]
    with Checker(evil, timeout_s=0.5, memory_gb=1.0, processes=2) as checker:
        scores = checker.check([(EXAMPLE, text) for text in texts])
        again = checker.check([(EXAMPLE, "d")])
    failures = dict(zip(texts, (s.failure for s in scores), strict=True))
    assert failures == {
        "a": "",
        "loop": "timeout",
        "b": "",
        "exit": "crash",
        "memory": "crash",
        "raise": "crash",
        "nan": "crash",
        "surrogate": "",
        "sleep": "timeout",
        "c": "",
    }
    assert all(s.reward == (0.0 if s.failure else 1.0) and s.correct == (not s.failure) for s in scores)
    assert scores[7].parsed == "?" + "x" * 499
    assert again[0].parsed == "d"


def test_a_process_is_replaced_after_so_many_checks_and_nothing_is_lost(evil, monkeypatch):
    monkeypatch.setattr(checker_module, "RECYCLE", 2 * CHUNK)
    with Checker(evil) as checker:
        scores = checker.check([(EXAMPLE, f"pid {i}") for i in range(5 * CHUNK + 1)])
    pids = [score.parsed for score in scores]
    runs = [len(list(run)) for _, run in groupby(pids)]
    assert runs == [2 * CHUNK, 2 * CHUNK, CHUNK + 1] and len(set(pids)) == 3
    assert not any(score.failure for score in scores)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
@pytest.mark.parametrize("recycle", [CHUNK, 100 * CHUNK])
def test_what_checks_leave_in_memory_fails_no_later_one(evil, monkeypatch, recycle):
    """Also where a process is not replaced by count, but because its memory is used up."""
    monkeypatch.setattr(checker_module, "RECYCLE", recycle)
    with Checker(evil, memory_gb=0.5) as checker:
        scores = checker.check([(EXAMPLE, "keep 4")] * (5 * CHUNK))  # 640 MiB
    assert {score.failure for score in scores} == {""}


def test_a_task_that_cannot_prepare_says_so(evil, capfd):
    import evil_task

    with Checker(evil_task.Unprepared()) as checker, pytest.raises(RuntimeError, match="checks evil starts"):
        checker.check([(EXAMPLE, "a")])
    assert "no data set here" in capfd.readouterr().err


def test_a_closed_checker_checks_nothing(evil):
    checker = Checker(evil)
    checker.close()
    with pytest.raises(RuntimeError):
        checker.check([(EXAMPLE, "a")])


def test_the_checking_process_has_no_secrets_in_its_environment(evil, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ray_canary")
    with Checker(evil, timeout_s=5) as checker:
        [score] = checker.check([(EXAMPLE, "environment")])
        assert os.environ["HF_TOKEN"] == "hf_canary"  # this process keeps its own
    names = (score.parsed or "").split()
    assert "PATH" in names and not {"HF_TOKEN", "RAY_AUTH_TOKEN"} & {*names}


def test_scores_come_in_the_order_of_the_completions():
    task = load_task("countdown")
    example = task.example({"nums": [1, 2], "target": 3})
    texts = ["<answer>1+2</answer>", "<answer>1-2</answer>", "nothing", "\ud800"] * 40
    with Checker(task, processes=2) as checker:
        assert checker.check([]) == []
        scores = checker.check([(example, text) for text in texts])
    assert [s.reward for s in scores] == [1.0, 0.1, 0.0, 0.0] * 40


def test_no_process_is_left_when_the_owner_is_killed(tmp_path):
    program = tmp_path / "owner.py"
    program.write_text(
        "import time\n"
        "from d1ray.tasks import load_task\n"
        "from d1ray.tasks.checker import Checker\n"
        "if __name__ == '__main__':\n"
        "    task = load_task('countdown')\n"
        "    checker = Checker(task)\n"
        "    checker.check([(task.example({'nums': [1, 2], 'target': 3}), '')])\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(100)\n"
    )
    owner = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    children = psutil.Process(owner.pid).children(recursive=True)
    assert children
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait(timeout=10)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


FUZZ = [
    *(
        "9**9**9**9",
        "<answer>",
        "</answer>",
        "\\boxed{",
        "}",
        "{",
        "\\frac{",
        "\\frac{1}{",
        "^",
        "^{9^9",
        "!",
    ),
    *(
        "\x00",
        "\ud800",
        "٣",
        "９",
        "１２３",
        " ",
        "\n",
        "1",
        "23",
        "4.5",
        "1,000",
        "-",
        "+",
        "*",
        "/",
        "=",
        "(",
    ),
    *(")", "[", "]", "|", "$", "\\times", "\\sqrt{", "\\text{", "x", "the answer is", "####", "<|eot_id|>"),
    *("\\begin{pmatrix}", "&", "\\\\", "\\pi", "\\infty", "<reasoning>\n", "\n</reasoning>\n", "\\int_0^1 "),
]
MONSTERS = ["9" * 10**6, "(" * 10_000 + "1" + ")" * 10_000, "\\frac{1}{" * 10_000, "=" * 10**6, "1+" * 10**5]


@pytest.mark.parametrize(
    ("name", "row", "right", "n"),
    [
        ("countdown", {"nums": [44, 19, 35], "target": 98}, "44+19+35", 5000),
        ("gsm8k", {"answer": "#### 43"}, "43", 5000),
        ("math", {"answer": "\\frac{1}{2}"}, "\\frac{1}{2}", 1000),  # sympy takes milliseconds for each
        ("sudoku", {"puzzle": "2004001203201003", "solution": "2134341243211243"}, "2134341243211243", 5000),
    ],
)
def test_fuzzed_completions_are_all_scored(name, row, right, n):
    """Half of them are a right answer with a piece put in, which reaches further into a judge than noise."""
    rng, task = np.random.default_rng(0), load_task(name)
    example = task.example(row)
    texts = ["".join(rng.choice(FUZZ, size=rng.integers(1, 25))) for _ in range(n // 2)]
    for start in rng.integers(len(right) + 1, size=n // 2):
        texts.append(right[:start] + str(rng.choice(FUZZ)) + right[start + rng.integers(3) :])
    texts = [f"<answer>\\boxed{{{t}}}</answer>" if i % 3 == 0 else t for i, t in enumerate(texts)]
    texts += [opening + m for m in MONSTERS for opening in ("", "<answer>", "\\boxed{")]
    with Checker(task, timeout_s=3.0, processes=2) as checker:
        scores = checker.check([(example, text) for text in texts])
    assert len(scores) == len(texts)
    assert not [(t[:80], s.failure) for t, s in zip(texts, scores, strict=True) if s.failure]
    assert 0 < sum(s.correct for s in scores) < sum(s.parsed is not None for s in scores) < len(scores)
