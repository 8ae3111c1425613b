"""How often a lost learner is built again, and from what."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.failures import LearnerLost
from d1ray.config.errors import DataError, RunFailed
from d1ray.config.recipe import load_config
from d1ray.programs.recovery import RestartLadder, refuse_to_begin_again
from d1ray.programs.sft import NEEDLESS, leave_out_helpers
from d1ray.programs.training import State, Training
from d1ray.run import checkpoint_writer
from d1ray.run.folder import RunFolder

LOST = LearnerLost("rank 0 died")


def test_rebuilds_that_get_further_never_end_the_run():
    ladder = RestartLadder(most=1)
    for step in range(20):
        ladder.begins(step, incarnation=step)
        ladder.fell(LOST, newest=step + 1)
    assert ladder.rebuilds == 20


def test_as_many_rebuilds_in_vain_as_allowed_and_one_more_is_the_error():
    ladder = RestartLadder(most=3)
    for _ in range(3):
        ladder.begins(5, incarnation=1)
        ladder.fell(LOST, newest=5)
    ladder.begins(5, incarnation=1)
    with pytest.raises(LearnerLost, match="rank 0 died"):
        ladder.fell(LOST, newest=5)


def test_the_incarnation_rises_whatever_the_checkpoint_says():
    ladder = RestartLadder(most=3)
    assert [ladder.begins(0, incarnation=7), ladder.begins(0, incarnation=2), ladder.begins(0, 0)] == [
        8,
        9,
        10,
    ]


def test_a_learner_that_may_not_be_rebuilt_is_not():
    ladder = RestartLadder(most=0)
    ladder.begins(0, incarnation=0)
    with pytest.raises(LearnerLost):
        ladder.fell(LOST, newest=9)


def test_a_run_whose_checkpoints_are_out_of_reach_is_not_begun_again(tmp_path: Path) -> None:
    """A volume that is not mounted looks like an empty folder; the run's own folder knows better."""
    with RunFolder.open(tmp_path / "run", load_config("sudoku-tiny", [])) as run:
        refuse_to_begin_again(run, "rl", tmp_path / "mount" / "rl")  # nothing was ever saved
        run.note_saved("rl", 12)
        with pytest.raises(DataError, match=r"step 12 \(rl\), but .*mount/rl holds none .*saved.json"):
            refuse_to_begin_again(run, "rl", tmp_path / "mount" / "rl")
        refuse_to_begin_again(run, "sft", tmp_path / "mount" / "sft")


def test_the_model_is_that_of_the_best_step_or_it_is_said_of_which(
    tmp_path: Path, make_text_model: Any, tokenizer: Any
) -> None:
    root, notes, written = tmp_path / "checkpoints", [], []
    for step in (4, 8):
        checkpoint_writer.save(root, step, make_text_model(step), tokenizer, {}, {}, 3)
    learner: Any = SimpleNamespace(
        finish_checkpoint=lambda: None,
        save_checkpoint=lambda *arguments: None,
        write_model=lambda saved, folder: written.append(saved.name),
    )
    with RunFolder.open(tmp_path / "run", load_config("sudoku-tiny", [])) as run:
        progress = SimpleNamespace(note=notes.append)
        job: Any = SimpleNamespace(rl=None, checkpoints=root, run=run, progress=progress)
        state = State(step=8, saved_step=4, best_step=4)
        nothing: Any = None
        training = Training(job, state, learner, nothing, nothing)
        training.save()
        assert run.saved_step("rl") == 4  # the one before is written
        training.finish()
        assert (written, notes, run.saved_step("rl")) == (["step-00004"], [], 8)
        (root / "step-00004" / "state.json").write_text("[]")
        training.finish()
        assert written[1:] == ["step-00008"]
        assert notes == [
            "the checkpoint of step 4, which validates best, is damaged or gone; models/rl is that of step 8"
        ]
        shutil.rmtree(root)
        with pytest.raises(RunFailed, match="holds no whole checkpoint"):
            training.finish()
        assert len(written) == 2


def test_ray_train_still_has_the_helpers_that_are_left_out() -> None:
    from ray.train.torch import TorchTrainer

    def callbacks() -> set[str]:
        return {type(callback).__name__ for callback in trainer._create_default_callbacks()}

    trainer = TorchTrainer(lambda: None)
    usual = callbacks()
    leave_out_helpers(trainer)
    assert usual - callbacks() == set(NEEDLESS)
