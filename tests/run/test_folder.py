import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from d1ray.config.cluster import ClusterConfig
from d1ray.config.errors import DataError, UserError
from d1ray.config.model import ArchitectureConfig, ModelConfig
from d1ray.config.rl import RLConfig
from d1ray.config.run import Config
from d1ray.config.sft import MaskedTrainingConfig
from d1ray.run.folder import RunFolder
from d1ray.run.rows import end_with_whole_line, read_rows
from d1ray.tasks.task import Task


def a_config(**changes) -> Config:
    settings = {
        "task": Task(name="sudoku", template="{puzzle}"),
        "model": ModelConfig(make=ArchitectureConfig(pretraining=(MaskedTrainingConfig(),))),
        "rl": RLConfig(steps=5),
    }
    return Config.model_construct(**(settings | changes))


def rl_rows(*steps: int) -> list[dict]:
    return [{"stage": "rl", "step": step, "reward": step / 10} for step in steps]


def scalars(run: RunFolder, stage: str, key: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run.tensorboard / stage))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(f"{stage}/{key}")]


def files(path: Path) -> set[str]:
    """What a user sees there."""
    found = {entry.relative_to(path) for entry in path.rglob("*")}
    return {str(entry) for entry in found if entry.parts[0] != ".lease"}


def test_a_new_run_has_its_folders_and_complete_configuration(tmp_path):
    path = tmp_path / "runs" / "one"
    config = a_config()
    with RunFolder.open(path, config) as run:
        assert yaml.safe_load(run.config_path.read_text()) == config.model_dump(mode="json")
        assert files(path) == {"config.yaml", "metrics.jsonl", "rollouts", "checkpoints", "models"}
        assert run.rollouts.is_dir() and run.checkpoints.is_dir() and run.models.is_dir()


def test_the_same_run_reopens_with_its_metrics(tmp_path):
    for row in rl_rows(1, 2):
        with RunFolder.open(tmp_path, a_config()) as run:
            run.log(row)
    assert run.metrics() == rl_rows(1, 2)


def test_what_may_change_between_starts_is_updated_in_the_configuration(tmp_path):
    RunFolder.open(tmp_path, a_config()).close()
    longer = a_config(
        rl=RLConfig(steps=9), cluster=ClusterConfig(generators=7), about="longer", run_dir=Path("elsewhere")
    )
    RunFolder.open(tmp_path, longer).close()
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (stored["rl"]["steps"], stored["cluster"]["generators"], stored["about"]) == (9, 7, "longer")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, "seed is 0 there and 3 here"),
        ({"rl": RLConfig(steps=5, mu=2)}, "rl.mu is 12 there and 2 here"),
        ({"rl": None}, "rl is {"),
        (
            {"model": ModelConfig(make=ArchitectureConfig(pretraining=(MaskedTrainingConfig(steps=7),)))},
            "model.make.pretraining.0.steps is 1000 there and 7 here",
        ),
        ({"model": ModelConfig(make=ArchitectureConfig())}, "model.make.pretraining.0 is {"),
    ],
)
def test_a_folder_of_another_run_is_refused_by_the_first_key_and_left_alone(tmp_path, changes, message):
    RunFolder.open(tmp_path, a_config()).close()
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError) as refusal:
        RunFolder.open(tmp_path, a_config(**changes))
    assert message in str(refusal.value) and "run_dir=DIR" in str(refusal.value)
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex.*run_dir=DIR"):
        RunFolder.open(tmp_path, a_config())
    assert files(tmp_path) == {"thesis.tex"}


@pytest.mark.parametrize("text", ["rl: [", "a plain sentence", ""])
def test_a_configuration_that_is_not_one_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="run_dir=DIR"):
        RunFolder.open(tmp_path, a_config())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"cannot write the run folder .*run_dir=DIR"):
            RunFolder.open(path, a_config())


def test_a_start_killed_before_its_configuration_can_be_repeated(tmp_path):
    (tmp_path / "rollouts").mkdir()
    (tmp_path / ".config.yaml.123.tmp").write_text("half a con")
    RunFolder.open(tmp_path, a_config()).close()
    assert (tmp_path / "config.yaml").is_file()


def test_rows_are_one_json_object_a_line_and_visible_at_once(tmp_path):
    with RunFolder.open(tmp_path, a_config()) as run:
        run.log({"stage": "rl", "step": 1, "kl": math.nan, "reward": np.float32(0.5), "note": "a\u2028b\nc"})
        lines = run.metrics_path.read_text().split("\n")
        assert len(lines) == 2 and lines[1] == ""
        assert json.loads(lines[0]) == {
            "stage": "rl",
            "step": 1,
            "kl": None,
            "reward": 0.5,
            "note": "a\u2028b\nc",
        }
        assert len(run.metrics()) == 1


def test_numbers_go_to_tensorboard_under_stage_and_key(tmp_path):
    with RunFolder.open(tmp_path, a_config()) as run:
        run.log({"stage": "sft", "step": 3, "loss": 0.5, "note": "text"})
        run.log({"stage": "rl", "step": 1, "reward": 0.25, "started_step": 1.7e9})
    assert scalars(run, "sft", "loss") == [(3, 0.5)]
    assert scalars(run, "rl", "reward") == [(1, 0.25)]
    with pytest.raises(KeyError):  # a time of day is no curve
        scalars(run, "rl", "started_step")


def test_a_row_without_stage_or_step_is_refused(tmp_path):
    with RunFolder.open(tmp_path, a_config()) as run, pytest.raises(ValueError, match="'stage' and 'step'"):
        run.log({"step": 1})


def test_a_line_torn_by_a_crash_is_dropped_on_reopening(tmp_path):
    with RunFolder.open(tmp_path, a_config()) as run:
        run.log(rl_rows(1)[0])
    with run.metrics_path.open("a") as file:
        file.write('{"stage": "rl", "st')
    with RunFolder.open(tmp_path, a_config()) as run:
        run.log(rl_rows(2)[0])
        assert run.metrics() == rl_rows(1, 2)


def test_a_broken_line_is_named(tmp_path):
    with RunFolder.open(tmp_path, a_config()) as run:
        run.log(rl_rows(1)[0])
        for line in ("{]", "3"):
            run.metrics_path.write_text(run.metrics_path.read_text().splitlines()[0] + f"\n{line}\n")
            with pytest.raises(DataError, match="line 2"):
                run.metrics()


def test_resuming_keeps_one_object_a_step(tmp_path, monkeypatch):
    sft = {"stage": "sft", "step": 90, "loss": 1.0}
    with RunFolder.open(tmp_path, a_config()) as run:
        for row in [sft, *rl_rows(1, 2, 3)]:
            run.log(row)
    # Event files are read in the order of the second they were made in, which is in their names.
    a_minute_later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: a_minute_later)
    with RunFolder.open(tmp_path, a_config()) as run:
        run.truncate_metrics("rl", after_step=1)
        for row in rl_rows(2, 3, 4):
            run.log(row)
        assert run.metrics() == [sft, *rl_rows(1, 2, 3, 4)]
    assert [step for step, _ in scalars(run, "rl", "reward")] == [1, 2, 3, 4]
    assert scalars(run, "sft", "loss") == [(90, 1.0)]


def test_what_is_rolled_back_is_moved_aside(tmp_path):
    with RunFolder.open(tmp_path, a_config()) as run:
        for row in rl_rows(1, 2, 3):
            run.log(row)
        for step in (1, 2, 3):
            (run.rollouts / f"step-{step:05d}.parquet").write_text(str(step))
            run.note_dropped({"step": step, "group_id": 10 + step})
        run.truncate_metrics("rl", after_step=1)
        run.set_rollouts_aside(after_step=1)
        run.truncate_metrics("rl", after_step=1)
        (run.rollouts / "step-00003.parquet").write_text("again")
        (run.rollouts / "step-00003 copy.parquet").write_text("somebody's")
        run.set_rollouts_aside(after_step=1)
        assert run.metrics() == rl_rows(1)
        assert read_rows(tmp_path / "rolled-back" / "metrics.jsonl") == rl_rows(2, 3)
        assert [row["group_id"] for row in read_rows(tmp_path / "dropped.jsonl")] == [11]
        assert [row["group_id"] for row in read_rows(tmp_path / "rolled-back" / "dropped.jsonl")] == [12, 13]
    left = sorted(file.name for file in run.rollouts.iterdir())
    assert left == ["step-00001.parquet", "step-00003 copy.parquet"]
    aside = {file.name: file.read_text() for file in (tmp_path / "rolled-back").glob("step-*")}
    assert aside == {"step-00002.parquet": "2", "step-00003.parquet": "3", "step-00003-2.parquet": "again"}


def test_a_run_remembers_the_checkpoints_it_has_written(tmp_path):
    with RunFolder.open(tmp_path, a_config()) as run:
        assert run.saved_step("rl") == 0
        run.note_saved("rl", 4)
    with RunFolder.open(tmp_path, a_config()) as run:
        assert run.saved_step("rl") == 4
        run.saved_path.write_text("")
        with pytest.raises(DataError, match=r"saved\.json cannot be read"):
            run.saved_step("rl")


def test_truncating_while_writing_goes_on_in_the_new_file(tmp_path):
    with RunFolder.open(tmp_path, a_config()) as run:
        for step in (1, 2):
            run.log(rl_rows(step)[0])
        run.truncate_metrics("rl", after_step=-1)
        run.log(rl_rows(1)[0])
        assert run.metrics() == rl_rows(1)


def test_the_summary_is_json_with_null_for_what_is_not_finite(tmp_path):
    with RunFolder.open(tmp_path, a_config()) as run:
        row = {"stage": "rl", "task": "sudoku", "n": 0, "solved": math.nan, "ci95": (0.0, 1.0)}
        run.write_summary([row], {"checkpoint": Path("a/b"), "peak": {"bytes": np.int64(7)}})
        assert json.loads(run.summary_path.read_text()) == {
            "rows": [{"stage": "rl", "task": "sudoku", "n": 0, "solved": None, "ci95": [0.0, 1.0]}],
            "checkpoint": "a/b",
            "peak": {"bytes": 7},
        }
    assert not [name for name in files(tmp_path) if name.endswith(".tmp")]


def test_a_summary_that_cannot_be_written_leaves_the_old_one(tmp_path):
    with RunFolder.open(tmp_path, a_config()) as run:
        run.write_summary([], {"seconds": 1})
        with pytest.raises(TypeError):
            run.write_summary([], {"seconds": object()})
        assert json.loads(run.summary_path.read_text()) == {"rows": [], "seconds": 1}


def test_closing_twice_is_harmless(tmp_path):
    run = RunFolder.open(tmp_path, a_config())
    run.close()
    run.close()


def test_rollouts_of_a_long_run_are_thinned_and_still_set_aside(tmp_path):
    with RunFolder.open(tmp_path, a_config()) as run:
        (run.rollouts / "notes.txt").touch()
        for step in range(1, 201):
            (run.rollouts / f"step-{step:05d}.parquet").touch()
            run.thin_rollouts(step, keep=16)
            assert len(list(run.rollouts.glob("*.parquet"))) <= 16 + 16 // 8
        kept = sorted(int(file.stem[5:]) for file in run.rollouts.glob("*.parquet"))
        assert kept == [*range(32, 193, 32), *range(193, 201)]
        run.set_rollouts_aside(196)
        assert sorted(file.name for file in run.rolled_back.iterdir()) == [
            f"step-{step:05d}.parquet" for step in range(197, 201)
        ]
        assert (run.rollouts / "notes.txt").exists()


def test_how_many_rollouts_are_kept_may_change_between_starts(tmp_path):
    RunFolder.open(tmp_path, a_config()).close()
    RunFolder.open(tmp_path, a_config(rl=RLConfig(steps=5, keep_rollouts=7))).close()


@pytest.mark.parametrize("torn", ["", "x", "y" * 200_000])
def test_only_a_torn_last_line_is_cut_however_long_the_file(tmp_path, torn):
    whole = "".join(f"{n:0100d}\n" for n in range(3000))
    for content in ("", whole):
        (tmp_path / "rows").write_text(content + torn)
        end_with_whole_line(tmp_path / "rows")
        assert (tmp_path / "rows").read_text() == content
