"""Data sets of the hub: read through ``datasets``, from a folder that is laid out as one or by their id."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from d1ray.config.data import DataConfig
from d1ray.config.errors import DataError
from d1ray.config.kinds import load_task
from d1ray.models.character_tokenizer import character_tokenizer
from d1ray.run.data import examples_of
from d1ray.tasks.source import examples_to_evaluate, open_data

SPLITS = ("train", "validation", "test")


def questions(n, first=0):
    return [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(first, first + n)]


def published(folder, **splits):
    """A folder as the hub has it: data/SPLIT-00000-of-00001.parquet."""
    (folder / "data").mkdir(parents=True)
    for name, rows in splits.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


def keys(data, split):
    return {example.key for example in data.rows(split)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_splits_of_a_data_set_are_kept_and_validation_is_carved_from_train(tmp_path):
    task, rows = load_task("gsm8k"), questions(100)
    data = open_data(task, published(tmp_path / "set", train=rows[:80], test=rows[80:]), seed=0)
    assert keys(data, "test") == {row["question"] for row in rows[80:]}
    assert keys(data, "train") | keys(data, "validation") == {row["question"] for row in rows[:80]}
    assert all(task.split_of(key) == "validation" for key in keys(data, "validation"))


def test_the_only_split_is_divided_whatever_its_name(tmp_path):
    task = load_task("gsm8k")
    data = open_data(task, published(tmp_path / "set", test=questions(100)), seed=0)
    assert sum(len(keys(data, split)) for split in SPLITS) == 100
    assert all(task.split_of(key) == split for split in SPLITS for key in keys(data, split))


def test_a_problem_of_several_splits_is_held_out(tmp_path):
    rows = questions(60)
    folder = published(tmp_path / "set", train=rows, validation=rows[:20], test=rows[10:30])
    data = open_data(load_task("gsm8k"), folder, seed=0)
    assert keys(data, "test") == {row["question"] for row in rows[10:30]}
    assert keys(data, "validation") == {row["question"] for row in rows[:10]}
    assert keys(data, "train") == {row["question"] for row in rows[30:]}


def test_splits_without_train_are_an_error(tmp_path):
    folder = published(tmp_path / "set", validation=questions(9), test=questions(9))
    with pytest.raises(DataError, match="has the splits validation, test; one must be called train"):
        open_data(load_task("gsm8k"), folder, seed=0)


def test_a_malformed_row_is_named_by_data_set_split_and_number(tmp_path):
    folder = published(tmp_path / "set", train=[*questions(2), {"question": "?", "answer": "none"}])
    with pytest.raises(DataError, match=r"set, train row 3: answer must be a number"):
        open_data(load_task("gsm8k"), folder, seed=0)


def test_a_folder_that_is_no_data_set_is_an_error_in_one_line(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.bin").write_bytes(b"\x00")
    with pytest.raises(DataError, match=r"notes cannot be read as a data set: [^\n]*$"):
        open_data(load_task("gsm8k"), tmp_path / "notes", seed=0)


@pytest.mark.parametrize(("task", "path"), [("gsm8k", None), ("countdown", "some-org/some-set")])
def test_without_a_network_the_error_names_the_data_set_and_what_to_do(task, path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = DataConfig(path=path)
    said = rf"{path or 'openai/gsm8k'} is no file or folder here, .* give data\.path=FILE"
    with pytest.raises(DataError, match=said):
        examples_of(settings, load_task(task), 0, character_tokenizer())


def test_overlong_prompts_are_dropped_and_counted_when_asked(tmp_path):
    task, tokenizer = load_task({"name": "gsm8k", "template": "{question}"}), character_tokenizer()
    rows = [*questions(50), {"question": "1 + 1?" * 20, "answer": "#### 2"}]
    folder = published(tmp_path / "set", train=rows, test=questions(5, first=90))
    kept = examples_of(
        DataConfig(path=folder, max_prompt_length=20, overlong_prompts="drop"), task, 0, tokenizer
    )
    assert sum(kept.dropped.values()) == 1
    assert sum(len(keys(kept, split)) for split in SPLITS) == 55
    everything = examples_of(DataConfig(path=folder, max_prompt_length=20), task, 0, tokenizer)
    assert sum(len(keys(everything, split)) for split in SPLITS) == 56


def test_generated_examples_that_do_not_fit_are_drawn_anew():
    task, tokenizer = (
        load_task({"name": "countdown", "template": "{numbers}={target}"}),
        character_tokenizer(),
    )
    short = examples_of(DataConfig(max_prompt_length=14, overlong_prompts="drop"), task, 0, tokenizer)
    whole = examples_of(DataConfig(max_prompt_length=14), task, 0, tokenizer)
    examples = [*(short.train(i) for i in range(50)), *short.examples("test", 20)]
    assert all(len(example.prompt) <= 12 for example in examples)  # two role tokens
    fitting = [i for i in range(50) if len(whole.train(i).prompt) <= 12]
    assert 0 < len(fitting) < 50
    assert all(short.train(i) == whole.train(i) for i in fitting)


def test_when_every_prompt_is_too_long_the_error_counts_them(tmp_path):
    folder = published(tmp_path / "set", train=questions(50))
    settings = DataConfig(path=folder, max_prompt_length=2, overlong_prompts="drop")
    with pytest.raises(DataError, match=r"50 distinct problems, 50 of them left out as too long"):
        examples_of(settings, load_task("gsm8k"), 0, character_tokenizer())


def test_data_to_evaluate_is_the_whole_test_split_or_the_only_one(tmp_path):
    task, rows = load_task("gsm8k"), questions(50)
    both = published(tmp_path / "both", validation=rows[:20], test=rows[20:])
    assert [e.fields["question"] for e in examples_to_evaluate(task, both)] == [
        row["question"] for row in rows[20:]
    ]
    assert len(examples_to_evaluate(task, published(tmp_path / "one", anything=rows))) == 50
    several = published(tmp_path / "several", a=rows[:20], b=rows[20:])
    with pytest.raises(DataError, match="one must be called test"):
        examples_to_evaluate(task, several)
