"""Tasks from a user's file; the one of docs/adding-a-task.md is really run."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from d1ray.config.evaluation import ScoringConfig
from d1ray.config.kinds import load_task
from d1ray.config.rng import generator
from d1ray.evaluation.score import score_file
from d1ray.tasks.checker import Checker

DOCS = Path(__file__).resolve().parents[2] / "docs" / "adding-a-task.md"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "reverse.py"
    path.write_text(re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[0])
    return path


def test_the_documented_task_draws_judges_and_demonstrates(file):
    task = load_task({"name": str(file), "letters": 6})
    for split in ("train", "validation", "test"):
        example = task.draw(split, generator(0, split))
        assert len(example.fields["word"]) == 6
        assert example.fields["word"] in example.prompt
        assert task.score(example, task.demonstration(example, "clean", generator(0, "d"))).reward == 1.1
    assert load_task(task.model_dump()) == task


def test_a_task_travels_with_its_source(file, tmp_path):
    task = load_task(str(file))
    example = task.example({"word": "abc"})
    (tmp_path / "task.pickle").write_bytes(pickle.dumps(task))
    file.unlink()
    assert pickle.loads(pickle.dumps(task)) == task
    with Checker(task) as checker:
        assert checker.check([(example, "<answer>cba</answer>")])[0].correct
    program = (
        "import pickle, sys; task = pickle.load(open(sys.argv[1], 'rb')); "
        "print(task.score(task.example({'word': 'abc'}), '<answer>cb</answer>').reward)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "task.pickle")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert float(done.stdout) == pytest.approx(2 / 3), done.stderr


def test_completions_of_a_custom_task_are_scored(file, tmp_path):
    rows = [{"completion": "<answer>cba</answer>", "word": "abc"}, {"completion": "abc", "word": "abc"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = score_file(load_task(str(file)), tmp_path / "in.jsonl", None, ScoringConfig(), processes=1)
    assert (summary.n, summary.correct, summary.parse_failures) == (2, 1, 1)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\n", "must define one subclass of Task, found none"),
        ("def f(:\n", "line 1: SyntaxError"),
        ("a = 1\nb = c\n", "line 2: NameError"),
        (
            "from d1ray.tasks import Task\nclass A(Task):\n    pass\nclass B(Task):\n    pass\n",
            "must define one subclass of Task, found A, B",
        ),
    ],
)
def test_a_file_that_is_no_task_says_why(tmp_path, source, said):
    path = tmp_path / "t.py"
    path.write_text(source)
    with pytest.raises(ValueError, match=said):
        load_task(str(path))


def test_a_missing_file_and_a_wrong_option_are_named(file, tmp_path):
    with pytest.raises(ValueError, match=r"task\.name: .*nowhere\.py cannot be read"):
        load_task(str(tmp_path / "nowhere.py"))
    with pytest.raises(ValueError, match=r"task\.leters: unknown option .did you mean 'letters'"):
        load_task({"name": str(file), "leters": 3})
