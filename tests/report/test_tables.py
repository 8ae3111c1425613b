"""Failures, time, the final table and the settings that differ."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from d1ray.report.runs import Run, read_runs
from d1ray.report.statistics import step_statistics
from d1ray.report.tables import algorithm_title, differences, failures, phase_seconds, results

MakeRun = Callable[..., Path]


def counted(run: Run) -> dict[str, tuple[int, list[int]]]:
    return {one.name: (one.total, list(one.steps)) for one in failures(run, list(step_statistics(run)))}


def test_failures_are_added_up_with_their_steps(make_run: MakeRun) -> None:
    rows = [
        {"stage": "rl", "step": step, "score_timeouts": step % 2, "nonfinite": 2.0 * (step == 2)}
        for step in (1, 2, 3)
    ]
    folder = make_run(rows=rows)
    lines = [{"step": 2, "group_id": 4, "reason": "a"}, {"step": 2, "group_id": 5, "reason": "b"}]
    (folder / "dropped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = counted(read_runs([folder])[0])
    assert found["Checks timed out"] == (2, [1, 3])
    assert found["Updates not finite"] == (2, [2])
    assert found["Groups dropped"] == (2, [2])
    assert found["Checks crashed"] == (0, [])


def test_the_counter_of_calls_made_again_may_begin_anew(make_run: MakeRun) -> None:
    # 0, 2, 2, then the learner is rebuilt: 1, 1, 3. In all 2 + 1 + 2.
    rows = [
        {"stage": "rl", "step": step, "reissued_calls": count}
        for step, count in enumerate((0, 2, 2, 1, 1, 3), start=1)
    ]
    assert counted(read_runs([make_run(rows=rows)])[0])["Calls made again"] == (5, [2, 4, 6])


def test_a_learner_that_was_started_again_shows_in_the_completions(make_run: MakeRun) -> None:
    folder = make_run(steps=3)
    for step, incarnation in ((2, 3), (3, 3)):  # the second learner died before its first step
        file = folder / "rollouts" / f"step-{step:05d}.parquet"
        table = pq.read_table(file)
        place = table.schema.get_field_index("incarnation")
        column = pa.array([incarnation] * table.num_rows, pa.int32())
        pq.write_table(table.set_column(place, table.schema.field(place), column), file)
    assert counted(read_runs([folder])[0])["Learner started again"] == (1, [2])


def test_seconds_of_the_phases_are_those_of_the_metrics(make_run: MakeRun) -> None:
    (run,) = read_runs([make_run(steps=2)])
    seconds = phase_seconds(run)
    assert seconds is not None
    assert seconds["steps"] == [1, 2] and seconds["wall"] == [8.0, 8.0]
    assert seconds["last"] == [1, 2]
    assert (seconds["sums"]["generate"], seconds["sums"]["step"]) == (12.0, 16.0)
    assert seconds["phases"]["generate"] == [6.0, 6.0] and seconds["phases"]["score"] == [0.75, 0.75]
    assert phase_seconds(read_runs([make_run("none", rows=[])])[0]) is None


def test_the_final_table_is_that_of_the_summary(make_run: MakeRun) -> None:
    folder = make_run()
    tags = {"new grid": {"n": 4, "solved": 0.5, "ci95": [0.15, 0.85]}}
    rows = [
        {
            "stage": "sft",
            "task": "sudoku",
            "n": 8,
            "cell": 0.5,
            "solved": 0.25,
            "format": 1.0,
            "ci95": [0.07, 0.59],
        },
        {
            "stage": "rl",
            "task": "sudoku",
            "n": 8,
            "cell": None,
            "solved": None,
            "format": 1,
            "ci95": [0, 1],
            "tags": tags,
        },
    ]
    (folder / "summary.json").write_text(json.dumps({"rows": rows}))
    sft, rl, tag = results(read_runs([folder]))
    assert (sft.label, sft.n, sft.solved, sft.ci95) == ("SFT", 8, 0.25, (0.07, 0.59))
    assert (rl.label, rl.solved) == ("SFT + diffu-GRPO", None)
    assert (tag.label, tag.n, tag.of_stage) == ("new grid", 4, False)


def test_settings_that_differ_are_listed_with_each_runs_value(make_run: MakeRun) -> None:
    runs = read_runs([make_run("a"), make_run("b", "seed=3", "rl.algorithm=wd1", "rl.lora.r=8")])
    found = differences(runs)
    assert found["seed"] == ["0", "3"]
    assert found["rl.algorithm.name"] == ["diffu_grpo", "wd1"]
    assert found["rl.algorithm.beta"] == ["0.01", "-"]
    assert found["rl.lora.r"] == ["-", "8"] and found["rl.lora"] == ["null", "-"]
    assert "run_dir" not in found and "rl.mu" not in found


def test_an_algorithm_is_called_as_everywhere_and_an_unknown_one_by_its_name(make_run: MakeRun) -> None:
    known, sft = make_run("known"), make_run("sft", "rl=null", rows=[], steps=0)
    text = (known / "config.yaml").read_text()
    assert [algorithm_title(run) for run in read_runs([known, sft])] == ["diffu-GRPO", ""]
    (known / "config.yaml").write_text(text.replace("name: diffu_grpo", "name: my_own"))
    assert algorithm_title(read_runs([known])[0]) == "my_own"
