"""Rows of CSV files and of verl's layout."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from d1ray.config.errors import DataError
from d1ray.config.kinds import load_task
from d1ray.tasks.rows import load_examples
from d1ray.tasks.source import open_data


def test_csv_cells_are_text_but_for_lists(tmp_path):
    (tmp_path / "s.csv").write_text("puzzle,solution\n0134001203201003,2134341243211243\n")
    assert load_examples(load_task("sudoku"), tmp_path / "s.csv")[0].fields["puzzle"] == "0134001203201003"
    (tmp_path / "c.csv").write_text('nums,target\n"[44, 19, 35]",98\n')
    assert load_examples(load_task("countdown"), tmp_path / "c.csv")[0].fields == {
        "nums": [44, 19, 35],
        "target": 98,
    }
    (tmp_path / "g.csv").write_text('question,answer\n"How many, then?",#### 7\n')
    assert load_examples(load_task("gsm8k"), tmp_path / "g.csv")[0].fields["question"] == "How many, then?"


@pytest.mark.parametrize(
    ("text", "said"),
    [("nums,target\n[1,98\n", "expected 2 cells|not a JSON list"), ("nums,target\n1\n", "expected 2 cells")],
)
def test_a_broken_csv_names_the_line(tmp_path, text, said):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        load_examples(load_task("countdown"), tmp_path / "c.csv")


VERL = {
    "gsm8k": {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "20 + 23?"}],
        "reward_model": {"style": "rule", "ground_truth": "43"},
        "extra_info": {"split": "train", "index": 0},
    },
    "countdown": {
        "prompt": [{"role": "user", "content": "Make 98 of 44, 19, 35."}],
        "reward_model": {"style": "rule", "ground_truth": {"target": 98, "numbers": [44, 19, 35]}},
    },
}


@pytest.mark.parametrize(
    ("name", "prompt", "right"),
    [
        ("gsm8k", "Be brief.\n20 + 23?", "\\boxed{43}"),
        ("countdown", "Make 98 of 44, 19, 35.", "<answer>44+19+35</answer>"),
    ],
)
def test_a_verl_row_is_read_with_its_own_prompt(tmp_path, name, prompt, right):
    pq.write_table(pa.Table.from_pylist([VERL[name]]), tmp_path / "v.parquet")
    task = load_task(name)
    (example,) = load_examples(task, tmp_path / "v.parquet")
    assert example.prompt == prompt
    assert task.score(example, right).correct


def test_columns_may_have_other_names_and_a_wrong_one_is_named(tmp_path):
    (tmp_path / "g.csv").write_text("query,response\n20 + 23?,#### 43\n")
    task, columns = load_task("gsm8k"), {"question": "query", "answer": "response"}
    (example,) = load_examples(task, tmp_path / "g.csv", columns)
    assert example.fields == {"question": "20 + 23?", "answer": "#### 43"}
    with pytest.raises(DataError, match=r"line 2: column 'reply' is missing; found query, response"):
        load_examples(task, tmp_path / "g.csv", {"answer": "reply"})


def test_several_responses_to_a_prompt_are_all_kept_and_a_repeated_row_once(tmp_path):
    (tmp_path / "d.csv").write_text("prompt,response\nJoke?,One\nJoke?,Two\nJoke?,One\n")
    examples = load_examples(load_task("dialogue"), tmp_path / "d.csv")
    assert [example.fields["response"] for example in examples] == ["One", "Two"]


def test_a_task_without_a_generator_asks_for_a_file():
    with pytest.raises(DataError, match=r"task dialogue generates no examples: give data\.path=FILE"):
        open_data(load_task("dialogue"), None, 0)
