"""What a run logs reaches the trackers under the same names, and a tracker that fails ends no run."""

import builtins
import json
import time

import pytest
from mlflow.tracking import MlflowClient

from d1ray.config.errors import ConfigError
from d1ray.config.recipe import load_config
from d1ray.run import sender
from d1ray.run.trackers import Trackers, check_trackers

ROWS = [
    {"stage": "sft", "step": 2, "loss": 1.5},
    {"stage": "rl", "step": 1, "reward": 0.25, "reward/format": 1.0, "note": "no number"},
    {"stage": "rl", "step": 2, "reward": 0.5, "empty_batches": True},
]


@pytest.fixture
def config_of(tmp_path):
    (tmp_path / "run").mkdir()
    return lambda *more: load_config("sudoku-tiny", [f"run_dir={tmp_path / 'run'}", *more])


def logged(config, rows):
    trackers = Trackers(config)
    for row in rows:
        trackers.log(row)
    trackers.close()


def test_mlflow_has_every_number_over_its_stage_s_steps(config_of, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path / 'mlruns'}"
    config = config_of(f"tracking.mlflow={uri}", "seed=3")
    logged(config, ROWS[:2])
    logged(config, ROWS[2:])  # the run goes on
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("d1ray").experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "run" / "trackers.json").read_text())["mlflow"]
    assert run.info.run_name == "run" and run.data.params["seed"] == "3"
    assert run.data.params["rl.optimizer.learning_rate"] == str(config.rl.optimizer.learning_rate)

    def history(name):
        return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]

    assert history("rl/reward") == [(1, 0.25), (2, 0.5)]
    assert history("rl/reward.format") == [(1, 1.0)]
    assert history("sft/loss") == [(2, 1.5)]
    assert history("rl/note") == []


def test_wandb_has_the_numbers_in_a_run_that_goes_on(config_of, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = config_of("tracking.wandb=d1ray-test")
    logged(config, ROWS[:2])
    logged(config, ROWS[2:])
    stored = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    identity = json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]
    assert {file.name for file in stored} == {f"run-{identity}.wandb"}
    content = b"".join(file.read_bytes() for file in sorted(stored))
    for text in (b"rl/reward/format", b"rl/step", b"sft/loss", b"d1ray-test"):
        assert text in content


def test_a_tracker_that_fails_has_everything_once_it_works_again(config_of, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr(sender, "FIRST_PAUSE_S", 0.05)
    trackers = Trackers(config_of(f"tracking.mlflow=file:{tmp_path / 'mlruns'}"))
    (tmp_path / "mlruns").rename(tmp_path / "gone")
    trackers.log(ROWS[1])
    while "MLflow does not take rows" not in caplog.text:
        time.sleep(0.01)
    trackers.log(ROWS[2])
    (tmp_path / "gone").rename(tmp_path / "mlruns")
    trackers.close()
    client = MlflowClient(tracking_uri=f"file:{tmp_path / 'mlruns'}")
    identity = json.loads((tmp_path / "run" / "trackers.json").read_text())["mlflow"]
    found = client.get_metric_history(identity, "rl/reward")
    assert [(m.step, m.value) for m in found] == [(1, 0.25), (2, 0.5)]
    assert len([r for r in caplog.records if "MLflow" in r.message]) == 1


def test_a_tracker_that_cannot_be_had_is_one_clear_error(config_of, monkeypatch):
    with pytest.raises(ConfigError, match=r"tracking\.mlflow=nonsense://x cannot be used"):
        Trackers(config_of("tracking.mlflow=nonsense://x"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'd1ray\[wandb\]'"):
        check_trackers(config_of("tracking.wandb=p").tracking)


def test_without_trackers_no_package_of_theirs_is_imported(config_of, monkeypatch):
    real = builtins.__import__

    def refusing(name, *rest, **options):
        assert name.split(".")[0] not in ("wandb", "mlflow")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refusing)
    logged(config_of(), ROWS)
