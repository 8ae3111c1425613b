"""s1K in the columns of its first and of its second edition."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from d1ray.config.kinds import load_task
from d1ray.config.rng import generator
from d1ray.tasks.source import open_data

QUESTION = {"question": "How many primes are below 10?", "solution": "There are $\\boxed{4}$."}
FIRST = {"thinking_trajectories": ["2, 3, 5 and 7."], "attempt": "Four: \\boxed{4}"}
SECOND = {
    "gemini_thinking_trajectory": "Another trace.",
    "gemini_attempt": "5",
    "deepseek_thinking_trajectory": "2, 3, 5 and 7.",
    "deepseek_attempt": "Four: \\boxed{4}",
}


@pytest.mark.parametrize("columns", [FIRST, SECOND], ids=["s1K", "s1K-1.1"])
def test_a_demonstration_is_the_trajectory_and_the_attempt(columns):
    task = load_task("s1k")
    example = task.example(QUESTION | columns)
    text = task.demonstration(example, "clean", generator(0, "d"))
    assert text == ("<reasoning>\n2, 3, 5 and 7.\n</reasoning>\n<answer>\nFour: \\boxed{4}\n</answer>")
    assert task.score(example, text).correct
    assert not task.score(example, text.replace("4", "5")).correct


def test_without_a_trace_a_row_can_be_scored_but_not_demonstrated():
    task = load_task("s1k")
    example = task.example(QUESTION)
    assert task.score(example, "\\boxed{4}").correct
    with pytest.raises(ValueError, match="no attempt"):
        task.demonstration(example, "clean", generator(0, "d"))


def test_a_file_of_s1k_opens(tmp_path):
    rows = [QUESTION | FIRST | {"question": f"How many primes are below {n}?"} for n in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "s1k.parquet")
    data = open_data(load_task("s1k"), tmp_path / "s1k.parquet", 0)
    train, held_out = data.rows("train"), data.rows("validation") + data.rows("test")
    assert len(train) + len(held_out) == 1000
    assert 20 <= len(held_out) <= 60
