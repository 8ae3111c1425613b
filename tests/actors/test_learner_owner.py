"""A learner's rank writes on behalf of the driver that built it, as long as that owns the run folder."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray

from actors.learner import Learner
from d1ray.config.rl import RLConfig
from d1ray.config.run import Config
from d1ray.models.save import save_model
from d1ray.run import checkpoint
from d1ray.run.claims import LeaseLost
from d1ray.run.lease import take
from d1ray.tasks.sudoku import Sudoku

LATER = SimpleNamespace(time=lambda: 1e11, sleep=lambda seconds: None)  # the owner of now is taken for silent


def test_once_another_driver_owns_the_run_it_writes_nothing(
    tmp_path: Path, make_text_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    save_model(make_text_model(0), tmp_path / "start", tokenizer)
    run = tmp_path / "run"
    config = Config(
        task=Sudoku(template="{puzzle}"),
        model={"path": tmp_path / "start"},
        rl=RLConfig(group_size=2),
        run_dir=run,
        checkpoint_path=str(tmp_path / "elsewhere"),
    )
    take(run)
    take(tmp_path / "elsewhere")
    root = config.checkpoint_root("rl")
    learner = Learner(config, tmp_path / "start")
    learner.build(("", 0))
    learner.save_checkpoint(root, 1, {"driver": {}}, 0)
    learner.finish_checkpoint()
    learner.save_checkpoint(root, 2, {"driver": {}}, 0)
    assert learner.writer is not None
    learner.writer.thread.join()

    take(run, clock=LATER)
    take(tmp_path / "elsewhere", clock=LATER)
    with pytest.raises(LeaseLost):
        learner.finish_checkpoint()  # would remove what the next owner may go on from
    with pytest.raises(LeaseLost):
        learner.save_checkpoint(root, 3, {"driver": {}}, 0)
    with pytest.raises(LeaseLost):
        learner.learn([pa.table({"reward": [0.0, 1.0]})], 0, run / "rollouts.parquet")  # type: ignore[list-item]
    with pytest.raises(LeaseLost):
        learner.write_model(None, run / "models" / "rl")
    assert [found.step for found in checkpoint.survey(root)] == [1, 2]
    assert [file.name for file in run.iterdir()] == [".lease"]
