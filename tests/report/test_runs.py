"""A run folder, whole or in pieces, as the report reads it."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from d1ray.config.errors import UserError
from d1ray.report.runs import distinct_names, evenly, over_steps, read_runs, read_table

MakeRun = Callable[..., Path]


def test_a_folder_without_a_run_is_named_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config.yaml; give the run_dir of a d1ray run"):
        read_runs([tmp_path])


def test_a_config_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config.yaml cannot be read as YAML"):
        read_runs([tmp_path])


def test_a_run_with_nothing_but_its_config_says_what_it_lacks(make_run: MakeRun) -> None:
    folder = make_run(steps=0)
    (folder / "metrics.jsonl").unlink()
    (run,) = read_runs([folder])
    assert run.missing == [
        "there is no metrics.jsonl",
        "there is no summary.json yet",
        "rollouts/ holds no completions",
    ]


def test_the_line_that_is_being_written_is_left_out(make_run: MakeRun) -> None:
    folder = make_run(steps=2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "rl", "st')
    (run,) = read_runs([folder])
    assert [row["step"] for row in run.rl_rows()] == [0, 1, 2]
    assert (folder / "metrics.jsonl").read_text().endswith('"st')  # and the file is left alone


def test_a_damaged_line_of_metrics_is_named(make_run: MakeRun) -> None:
    folder = make_run(steps=1)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("nonsense\n")
    (run,) = read_runs([folder])
    assert "metrics.jsonl cannot be read" in run.missing[0] and "line 3" in run.missing[0]


def test_a_damaged_file_of_completions_is_named_and_the_others_are_read(make_run: MakeRun) -> None:
    folder = make_run(steps=2)
    (folder / "rollouts" / "step-00001.parquet").write_bytes(b"PAR1 no more")
    (run,) = read_runs([folder])
    tables = [read_table(run, file, ["group_id"]) for file in run.rollouts]
    assert tables[0] is None and tables[1] is not None and tables[1].num_rows == 12
    assert any("step-00001.parquet cannot be read" in sentence for sentence in run.missing)


def test_columns_that_were_not_recorded_are_null_and_named_once(make_run: MakeRun) -> None:
    folder = make_run(steps=2)
    for file in (folder / "rollouts").iterdir():
        pq.write_table(pq.read_table(file).drop_columns(["generator"]), file)
    (run,) = read_runs([folder])
    tables = [read_table(run, file, ["generator", "reward"]) for file in run.rollouts]
    assert all(table is not None and table["generator"].null_count == 12 for table in tables)
    assert run.missing[1:] == ["the rollouts have no generator: they were not recorded"]


def test_completions_of_steps_that_were_rolled_back_are_not_the_runs(make_run: MakeRun) -> None:
    folder = make_run(steps=3)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:3]))  # steps 0 to 2
    (folder / "rollouts" / "step-00001 copy.parquet").write_bytes(b"somebody's")
    (run,) = read_runs([folder])
    assert [file.name for file in run.rollouts] == ["step-00001.parquet", "step-00002.parquet"]


def test_a_group_that_was_dropped_twice_counts_once(make_run: MakeRun) -> None:
    folder = make_run(steps=1)
    line = json.dumps({"step": 1, "group_id": 7, "example": "k", "reason": "why"}) + "\n"
    (folder / "dropped.jsonl").write_text(line * 2)
    (run,) = read_runs([folder])
    assert [row["group_id"] for row in run.dropped] == [7]


def test_runs_are_called_by_as_much_of_their_paths_as_tells_them_apart() -> None:
    assert distinct_names([Path("/a/seed-0"), Path("/a/seed-1")]) == ["seed-0", "seed-1"]
    assert distinct_names([Path("/a/run"), Path("/b/run")]) == ["a/run", "b/run"]


def test_the_same_folder_twice_is_one_run(make_run: MakeRun) -> None:
    folder = make_run()
    assert len(read_runs([folder, folder / ".." / folder.name])) == 1


def test_an_even_choice_keeps_both_ends() -> None:
    assert evenly(range(10), 4) == [0, 3, 6, 9]
    assert evenly([1, 2], 5) == [1, 2]
    assert evenly([1, 2, 3], 1) == [1]


def test_steps_are_chosen_evenly_over_the_run_wherever_more_completions_were_kept() -> None:
    files = [Path(f"step-{step:05d}.parquet") for step in (*range(8, 96, 8), *range(96, 105))]
    assert [int(file.stem[5:]) for file in over_steps(files, 5)] == [8, 32, 56, 80, 104]
    assert [int(file.stem[5:]) for file in over_steps(files, 13)] == [*range(8, 105, 8)]
    every = [Path(f"step-{step:05d}.parquet") for step in range(1, 102)]
    assert over_steps(every, 6) == evenly(every, 6) and over_steps(every, 200) == every
