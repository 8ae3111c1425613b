"""Data sources: the index is the whole position, splits are disjoint, and bad files are named."""

import json
from itertools import count, islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from d1ray.config.errors import DataError
from d1ray.config.rng import generator
from d1ray.tasks.countdown import Countdown
from d1ray.tasks.source import open_data
from d1ray.tasks.sudoku import Sudoku

SPLITS = ("train", "validation", "test")


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def rows():
    """100 distinct problems of all splits."""
    task = Countdown()
    drawn = (task.draw(SPLITS[i % 3], generator(0, "rows", i)) for i in count())
    distinct = {e.key: {"nums": e.fields["nums"], "target": e.fields["target"]} for e in islice(drawn, 110)}
    return list(distinct.values())[:100]


@pytest.fixture
def file(tmp_path, rows):
    return write_jsonl(tmp_path / "rows.jsonl", rows)


def keys(examples):
    return [e.key for e in examples]


def train_keys(data, n, stream="rl"):
    return keys(data.train(i, stream) for i in range(n))


# Generated


def test_a_generated_example_depends_on_seed_stream_and_index_only():
    data = open_data(Sudoku(), None, seed=3)
    backwards = [data.train(i) for i in reversed(range(5))][::-1]
    assert backwards == [open_data(Sudoku(), None, seed=3).train(i) for i in range(5)]


@pytest.mark.parametrize(("seed", "stream"), [(4, "rl"), (3, "sft")])
def test_another_seed_or_stream_generates_other_examples(seed, stream):
    usual = train_keys(open_data(Sudoku(), None, seed=3), 20)
    other = train_keys(open_data(Sudoku(), None, seed=seed), 20, stream)
    assert not set(usual) & set(other)


@pytest.mark.parametrize("split", SPLITS)
def test_an_evaluation_set_is_distinct_and_the_same_for_every_seed(split):
    first = open_data(Sudoku(), None, seed=1).examples(split, 100)
    assert len(set(keys(first))) == 100
    assert first == open_data(Sudoku(), None, seed=2).examples(split, 100)


def test_a_smaller_evaluation_set_begins_a_larger_one():
    data = open_data(Sudoku(), None, seed=0)
    assert data.examples("test", 10) == data.examples("test", 30)[:10]


def test_too_few_distinct_problems_is_an_error_that_says_what_to_do():
    # 1+1, 1*1, 2+1, 2-1, 2*1, 2/1, 2+2, 2-2 ...: a handful of problems.
    data = open_data(Countdown(numbers=2, max_number=2), None, seed=0)
    with pytest.raises(
        DataError, match=r"asked for 50 distinct train .* ask for fewer \(evaluation.examples"
    ):
        data.examples("train", 50)


# One file


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_a_single_file_is_divided_by_the_task(tmp_path, rows, write):
    suffix = write.__name__.removeprefix("write_")
    task, data = Countdown(), open_data(Countdown(), write(tmp_path / f"rows.{suffix}", rows), seed=0)
    splits = {split: data.examples(split, 1000) for split in SPLITS}
    assert sum(map(len, splits.values())) == 100
    assert all(task.split_of(e.key) == split for split, examples in splits.items() for e in examples)


def test_an_epoch_visits_every_training_row_once(file):
    data = open_data(Countdown(), file, seed=0)
    epoch = len(data.examples("train", 1000))
    assert sorted(train_keys(data, epoch)) == sorted(keys(data.examples("train", 1000)))


def test_every_epoch_has_its_own_order(file):
    data = open_data(Countdown(), file, seed=0)
    epoch = len(data.examples("train", 1000))
    visited = train_keys(data, 2 * epoch)
    assert visited[:epoch] != visited[epoch:]
    assert sorted(visited[:epoch]) == sorted(visited[epoch:])


@pytest.mark.parametrize(("seed", "stream"), [(1, "rl"), (0, "sft")])
def test_another_seed_or_stream_has_another_order(file, seed, stream):
    usual = train_keys(open_data(Countdown(), file, seed=0), 20)
    assert train_keys(open_data(Countdown(), file, seed=seed), 20, stream) != usual


def test_an_index_far_ahead_needs_none_before_it(file):
    a, b = open_data(Countdown(), file, seed=0), open_data(Countdown(), file, seed=0)
    a.train(0)
    assert a.train(10_000_019) == b.train(10_000_019)


def test_file_examples_are_a_fixed_sample_whatever_the_seed(file):
    few = open_data(Countdown(), file, seed=5).examples("train", 10)
    assert few == open_data(Countdown(), file, seed=6).examples("train", 20)[:10]


def test_a_repeated_problem_is_kept_once(tmp_path, rows):
    data = open_data(Countdown(), write_jsonl(tmp_path / "rows.jsonl", rows + rows), seed=0)
    assert sum(len(data.examples(split, 1000)) for split in SPLITS) == 100


def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + "\r\n\r\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    assert open_data(Countdown(), path, seed=0).examples("test", 1)


def test_a_split_without_rows_is_an_error(tmp_path, rows):
    path = write_jsonl(tmp_path / "few.jsonl", rows[:1])
    with pytest.raises(
        DataError, match=r"few\.jsonl: the .* split is empty: 1 distinct problems are too few"
    ):
        open_data(Countdown(), path, seed=0)


# A folder


def test_a_folder_s_test_problems_are_in_no_other_split(tmp_path, rows):
    write_parquet(tmp_path / "train.parquet", rows)
    write_jsonl(tmp_path / "test.jsonl", rows[:30])
    data = open_data(Countdown(), tmp_path, seed=0)
    test, rest = (
        keys(data.examples("test", 1000)),
        train_keys(data, 200) + keys(data.examples("validation", 1000)),
    )
    assert len(test) == 30
    assert len(set(rest)) == 70
    assert not set(test) & set(rest)


def test_a_folder_s_validation_is_carved_from_train(tmp_path, rows):
    write_jsonl(tmp_path / "train.jsonl", rows[10:])
    write_jsonl(tmp_path / "test.jsonl", rows[:10])
    task, data = Countdown(), open_data(Countdown(), tmp_path, seed=0)
    assert all(task.split_of(e.key) == "validation" for e in data.examples("validation", 1000))
    assert all(task.split_of(key) != "validation" for key in train_keys(data, 200))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test.jsonl"], r"exactly one of train\.parquet, train\.jsonl and train\.csv, found none"),
        (["train.jsonl"], r"exactly one of test\.parquet, test\.jsonl and test\.csv, found none"),
        (["train.jsonl", "test.jsonl", "test.parquet"], r"found test\.parquet, test\.jsonl"),
    ],
)
def test_a_folder_without_exactly_one_file_a_split_is_an_error(tmp_path, rows, names, message):
    for name in names:
        (write_jsonl if name.endswith("jsonl") else write_parquet)(tmp_path / name, rows)
    with pytest.raises(DataError, match=message):
        open_data(Countdown(), tmp_path, seed=0)


# Files that cannot be read

GOOD = '{"nums": [1, 2], "target": 3}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, "{", GOOD], r"line 2: not JSON"),
        ([GOOD, "", "[1]"], r"line 3: expected an object .* found \[1\]"),
        (["[" * 100_000], r"line 1: not JSON"),
        ([GOOD, b"\xff"], r"line 2: not JSON"),
        ([GOOD, '{"nums": [1, 2]}'], r"line 2: column 'target' is missing; found nums"),
        (["{}"], r"line 1: column 'nums' is missing; found none"),
        ([GOOD, '{"nums": [1, -2], "target": 3}'], r"line 2: nums must be a list"),
        ([GOOD, '{"nums": [1, 2], "target": NaN}'], r"line 2: target must be a positive integer, found nan"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_number(tmp_path, lines, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    with pytest.raises(DataError, match=r"rows\.jsonl, " + message):
        open_data(Countdown(), path, seed=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"puzzle": "12", "solution": "1234341221434321"}, r"row 2: puzzle must be 16 characters"),
        ({"puzzle": None, "solution": "1234341221434321"}, r"row 2: puzzle must be 16 characters"),
    ],
)
def test_a_malformed_parquet_row_is_named_by_file_and_number(tmp_path, row, message):
    good = {"puzzle": "1200341201434021", "solution": "1234341221434321"}
    with pytest.raises(DataError, match=r"rows\.parquet, " + message):
        open_data(Sudoku(), write_parquet(tmp_path / "rows.parquet", [good, row]), seed=0)


def test_the_columns_of_another_task_are_an_error_that_lists_what_was_found(file):
    with pytest.raises(DataError, match=r"line 1: column 'puzzle' is missing; found nums, target"):
        open_data(Sudoku(), file, seed=0)


def test_a_missing_file_is_an_error_that_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.parquet: no such file \(looked in /"):
        open_data(Sudoku(), tmp_path / "nowhere.parquet", seed=0)


def test_another_kind_of_file_is_an_error(tmp_path):
    (tmp_path / "rows.txt").write_text("puzzle,solution\n")
    with pytest.raises(DataError, match=r"expected a file that ends in \.parquet, \.jsonl or \.csv"):
        open_data(Sudoku(), tmp_path / "rows.txt", seed=0)


def test_a_file_that_is_not_parquet_is_an_error_in_one_line(tmp_path):
    (tmp_path / "rows.parquet").write_text("not parquet at all")
    with pytest.raises(DataError, match=r"rows\.parquet: cannot be read: [^\n]*$"):
        open_data(Sudoku(), tmp_path / "rows.parquet", seed=0)


def test_the_published_sudoku_folder_opens_with_its_500_test_puzzles(data_dir):
    data = open_data(Sudoku(), data_dir / "sudoku4x4", seed=0)
    assert len(data.examples("test", 1000)) == 500
    assert not set(keys(data.examples("test", 1000))) & set(train_keys(data, 1000))
