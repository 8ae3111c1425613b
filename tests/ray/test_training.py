"""The main loop on a real Ray cluster: results do not depend on who did the work, or on who died."""

import json
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import load_file

from actors.buffer import RolloutBuffer
from actors.failures import Kind, RolloutError
from actors.generator import Generator
from actors.policy import policy_of_folder
from actors.pools import Pools
from actors.retry import BUDGETS
from d1ray.config.errors import DataError
from d1ray.config.recipe import load_config
from d1ray.config.run import Config
from d1ray.diffusion.masked_loss import MaskedDiffusionLoss
from d1ray.models.load import load_model
from d1ray.models.tokenizer import load_tokenizer
from d1ray.programs import training
from d1ray.programs.evaluate import evaluate, held_out_prompts
from d1ray.programs.stages import run_recipe, supervised_stages
from d1ray.report.runs import read_runs
from d1ray.report.trace import trace_events
from d1ray.rl import schema
from d1ray.rl.optimizer import adamw
from d1ray.rl.rollout import Request
from d1ray.run import checkpoint
from d1ray.run.folder import RunFolder
from d1ray.run.interrupt import GivenUp, Interrupted
from d1ray.run.metrics import FAMILY, METRICS
from d1ray.run.progress import Progress
from d1ray.sft.demonstrations import Demonstrations, Phase
from d1ray.sft.masked_training import training_step
from d1ray.tasks.source import open_data


def identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


ConfigOf: TypeAlias = Callable[..., Config]
Reinforced: TypeAlias = Callable[..., dict[str, torch.Tensor]]
Processes: TypeAlias = Callable[..., list[psutil.Process]]


@pytest.fixture(scope="module")
def two_steps(
    ray_cluster: None, config_of: ConfigOf, reinforced: Reinforced, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Two outer steps with one generator: the run the others are compared with."""
    folder = tmp_path_factory.mktemp("one") / "run"
    weights = reinforced(config_of(folder, "rl.steps=2", "cluster.generators=1"))
    return {"weights": weights, "folder": folder}


def test_diffu_grpo_changes_the_weights(two_steps: dict[str, Any], start: Path) -> None:
    assert not identical(two_steps["weights"], load_file(start / "model.safetensors"))


def test_three_generators_give_bit_identical_weights(
    two_steps: dict[str, Any], config_of: ConfigOf, reinforced: Reinforced, tmp_path: Path
) -> None:
    three = reinforced(config_of(tmp_path / "run", "rl.steps=2", "cluster.generators=3"))
    assert identical(three, two_steps["weights"])


def test_one_step_and_a_resumed_second_give_bit_identical_weights(
    two_steps: dict[str, Any], config_of: ConfigOf, reinforced: Reinforced, tmp_path: Path
) -> None:
    # The schedule spans rl.steps, so the run is interrupted rather than configured shorter.
    asked = 0

    def after_the_first_step() -> bool:
        nonlocal asked
        asked += (tmp_path / "run" / "checkpoints" / "rl" / "step-00001").exists()
        return asked > 0

    config = config_of(tmp_path / "run", "rl.steps=2", "cluster.generators=2")
    with pytest.raises(Interrupted):
        reinforced(config, after_the_first_step)
    interrupted = checkpoint.latest(tmp_path / "run" / "checkpoints" / "rl")
    assert interrupted is not None and interrupted.name == "step-00001"
    assert identical(reinforced(config), two_steps["weights"])
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [0, 1, 2]


def test_a_validation_given_up_after_a_signal_is_done_again_with_its_step(
    two_steps: dict[str, Any],
    config_of: ConfigOf,
    reinforced: Reinforced,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    validating = False

    def noted(*arguments: Any) -> Any:
        nonlocal validating
        validating = True
        verdicts = evaluate(*arguments)
        validating = False
        return verdicts

    def in_the_second_step() -> bool:
        return validating and (run / "checkpoints" / "rl" / "step-00001").exists()

    config = config_of(run, "rl.steps=2", "cluster.generators=2", "cluster.grace_s=0.001")
    monkeypatch.setattr(training, "evaluate", noted)
    with pytest.raises(GivenUp, match=r"half of cluster.grace_s\); the run goes on from step 1$"):
        reinforced(config, in_the_second_step)
    assert [path.name for path in (run / "checkpoints" / "rl").iterdir()] == ["step-00001"]
    assert identical(reinforced(config), two_steps["weights"])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all("validation_solved" in row for row in rows)


def test_lora_trains_publishes_and_keeps_only_the_adapter(
    config_of: ConfigOf, reinforced: Reinforced, tmp_path: Path
) -> None:
    """The reference moves after step 1; two generators and an interruption end where one generator does."""
    overrides = [
        "rl.steps=2",
        "rl.lora.r=4",
        "rl.reference_sync_updates=2",
        "rl.optimizer.learning_rate=1e-2",
    ]
    whole = config_of(tmp_path / "whole", *overrides, "cluster.generators=1")
    trained = reinforced(whole)
    assert trained and all(".lora_" in name for name in trained)
    assert any(tensor.any() for name, tensor in trained.items() if ".lora_B." in name)

    asked = 0

    def after_the_first_step() -> bool:
        nonlocal asked
        asked += (tmp_path / "parts" / "checkpoints" / "rl" / "step-00001").exists()
        return asked > 0

    parts = config_of(tmp_path / "parts", *overrides, "cluster.generators=2")
    with pytest.raises(Interrupted):
        reinforced(parts, after_the_first_step)
    assert identical(reinforced(parts), trained)

    for step in (
        1,
        2,
    ):  # the reference is the start model, then the policy after step 1: each time the policy
        table = pq.read_table(tmp_path / "whole" / "rollouts" / f"step-{step:05d}.parquet")
        old, reference = (torch.tensor(table[f"{name}_logps"].to_pylist()) for name in ("old", "reference"))
        assert torch.allclose(old, reference, atol=1e-5)
    assert whole.model.path is not None
    merged = load_model(tmp_path / "whole" / "models" / "rl")
    assert merged.state_dict().keys() == load_model(whole.model.path).state_dict().keys()


@pytest.mark.parametrize("adapter", ["rl.lora.r=4", "rl.lora=null"])
def test_in_bf16_generator_and_learner_agree_up_to_its_rounding(
    ray_cluster: None,
    config_of: ConfigOf,
    reinforced: Reinforced,
    tmp_path: Path,
    adapter: str,
) -> None:
    settings = ["model.precision=bf16", adapter, "rl.steps=2", "rl.optimizer.learning_rate=1e-3"]
    reinforced(config_of(tmp_path / "run", *settings, "cluster.generators=1"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    gaps = [row["logprob_gap"] for row in rows[1:]]
    assert max(gaps) < 0.1, gaps
    assert max(gaps) > 1e-6, gaps  # in fp32 they are smaller
    saved = load_file(tmp_path / "run" / "models" / "rl" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_decoding_that_strays_above_the_limit_becomes_exact_and_stays_so(
    config_of: ConfigOf, reinforced: Reinforced, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every group is measured; no gap is below the limit. A resumed run goes on exactly."""
    overrides = ["rl.steps=2", "rl.sampling.threshold=0.1", "rl.mismatch={every: 1, limit: 1.0e-9}"]
    config = config_of(tmp_path / "run", *overrides, "cluster.generators=1")
    asked = 0

    def after_the_first_step() -> bool:
        nonlocal asked
        asked += (tmp_path / "run" / "checkpoints" / "rl" / "step-00001").exists()
        return asked > 0

    with pytest.raises(Interrupted):
        reinforced(config, after_the_first_step)
    reinforced(config)
    assert "nats a token from exact decoding, above rl.mismatch.limit=1e-09" in capsys.readouterr().out
    _, first, second = (
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    )
    assert (first["resampled"], first["mismatch"] > 1e-9) == (4, True)
    assert second["resampled"] == 0 and "mismatch" not in second
    for step in (1, 2):  # 20 tokens in 20 steps
        table = pq.read_table(tmp_path / "run" / "rollouts" / f"step-{step:05d}.parquet")
        assert table["forwards"].to_pylist() == [20] * 16


@pytest.mark.parametrize(("victim", "generators"), [("Generator.generate", 1), ("Scorer", 2)])
def test_killed_actors_are_replaced_with_bit_identical_weights(
    two_steps: dict[str, Any],
    config_of: ConfigOf,
    reinforced: Reinforced,
    processes: Processes,
    tmp_path: Path,
    victim: str,
    generators: int,
) -> None:
    kills: list[int] = []
    over = threading.Event()

    def kill_one_at_work() -> None:
        """Waits for the first row of metrics: from then on every call is part of a training step."""
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not kills and not over.is_set():
            if metrics.exists() and metrics.stat().st_size:
                for process in processes(f"ray::{victim}")[:1]:
                    process.kill()
                    kills.append(process.pid)
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one_at_work)
    killer.start()
    config = config_of(tmp_path / "run", "rl.steps=2", f"cluster.generators={generators}")
    try:
        weights = reinforced(config)
    finally:
        over.set()
        killer.join(timeout=60)
    assert kills
    assert identical(weights, two_steps["weights"])


def test_a_stored_rollout_has_the_schema_and_one_row_per_completion(two_steps: dict[str, Any]) -> None:
    table = pq.read_table(two_steps["folder"] / "rollouts" / "step-00001.parquet")
    assert table.schema.equals(schema.ROLLOUT)
    assert table.num_rows == 4 * 4
    assert table["group_id"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_a_trace_has_every_actors_work_between_the_starts_of_the_steps(two_steps: dict[str, Any]) -> None:
    """With one generator and no staleness a group is sampled, scored and learned in turn, then published."""
    (run,) = read_runs([two_steps["folder"]])
    events = [event for event in trace_events(run) if event["ph"] == "X"]
    names = {(event["cat"], event["name"], event["tid"]) for event in events}
    assert names == {
        ("driver", "step 1", 0),
        ("driver", "step 2", 0),
        ("driver", "publish", 0),
        ("driver", "validate", 0),
        ("learner", "learn", 0),
        ("generators", "load", 0),
        ("generators", "generate", 0),
        ("generators", "logprob", 0),
        ("scorers", "score", 0),
    }
    for step in (1, 2):
        own = [event for event in events if event["args"]["step"] == step]
        first = min(event["ts"] for event in own if event["name"] == f"step {step}")
        learn = next(event for event in own if event["name"] == "learn")
        publish = next(event for event in own if event["name"] == "publish")
        groups = [event for event in own if event["name"] == "generate"]
        scores = [event for event in own if event["name"] == "score"]
        assert len(groups) == len(scores) == 4 and {event["args"]["age"] for event in groups} == {0}
        assert first <= min(event["ts"] for event in groups)
        assert max(event["ts"] + event["dur"] for event in scores) <= learn["ts"]
        assert learn["ts"] + learn["dur"] <= publish["ts"]


def test_the_generators_log_probs_are_the_learners_at_lag_zero(two_steps: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in (two_steps["folder"] / "metrics.jsonl").read_text().splitlines()]
    assert [row["policy_age"] for row in rows[1:]] == [0, 0]
    assert all(row["logprob_gap"] < 1e-5 for row in rows[1:])


def test_every_logged_number_is_in_the_table_of_metrics(two_steps: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in (two_steps["folder"] / "metrics.jsonl").read_text().splitlines()]
    described = {metric.name for metric in METRICS if not metric.live} | {"stage"}
    families = {name for row in rows for name in row if name.startswith(FAMILY)}
    assert families and {name for row in rows for name in row} - families <= described


def test_overlapped_runs_with_per_completion_masks_do_not_depend_on_the_number_of_generators(
    ray_cluster: None, config_of: ConfigOf, reinforced: Reinforced, start: Path, tmp_path: Path
) -> None:
    overrides = [
        "rl.steps=3",
        "rl.algorithm.estimator.mask_scope=completion",
        "rl.staleness=1",
        "rl.importance_cap=2",
        "rl.reference_sync_updates=3",
    ]
    three = reinforced(config_of(tmp_path / "three", *overrides, "cluster.generators=3"))
    assert not identical(three, load_file(start / "model.safetensors"))
    rows = [json.loads(line) for line in (tmp_path / "three" / "metrics.jsonl").read_text().splitlines()]
    assert [row["policy_age"] for row in rows[1:]] == [0, 1, 1]
    assert [row["reference_version"] for row in rows[1:]] == [0, 2, 2]
    assert ["importance_mean" in row for row in rows[1:]] == [False, True, True]
    assert identical(reinforced(config_of(tmp_path / "one", *overrides, "cluster.generators=1")), three)


@pytest.mark.parametrize("kind", ["Generator", "Scorer"])
def test_an_actor_that_hangs_is_killed_after_the_deadline_and_its_group_done_again(
    ray_cluster: None, processes: Processes, config_of: ConfigOf, start: Path, tmp_path: Path, kind: str
) -> None:
    config = config_of(tmp_path / "run", "cluster.generators=1")
    tokenizer = load_tokenizer(start)
    examples = open_data(config.task, None, 0).examples("validation", 2)
    with closing(Pools(config, start)) as pools:
        prompts = held_out_prompts(tokenizer, examples, config.data.max_prompt_length)
        expected = evaluate(pools, policy_of_folder(start), prompts, config)  # all are up
        stopped = processes(f"ray::{kind}")
        assert stopped
        for process in stopped:
            process.suspend()
        # The deadline has to leave time to start another one.
        buffer = RolloutBuffer(pools.generators, pools.scorers, slots=1, deadline_s=20)
        buffer.start(Request(tuple(prompts), 1, config.evaluation.sampling, 0), policy_of_folder(start))
        (call,) = buffer.take(1)
        assert (buffer.killed, buffer.reissued, call.count(Kind.LOST)) == (1, 1, 1)
        assert call.metadata["texts"] == expected.texts


def test_a_slow_generator_gets_less_work_and_holds_up_nobody(
    ray_cluster: None, config_of: ConfigOf, start: Path, tmp_path: Path
) -> None:
    """The first of two stands still while the other one does all groups but those that the first had been
    given, and these are scored."""
    config, groups = config_of(tmp_path / "run", "cluster.generators=2"), 12
    examples = open_data(config.task, None, 0).examples("validation", groups)
    prompts = held_out_prompts(load_tokenizer(start), examples, config.data.max_prompt_length)
    with closing(Pools(config, start)) as pools:
        expected = evaluate(pools, policy_of_folder(start), prompts, config).texts
        ray.get([actor.__ray_ready__.remote() for actor in pools.generators.actors], timeout=60)
        pools.generators.refresh()
        first = pools.generators.actors[0]
        slow = psutil.Process(ray.get(first.__ray_call__.remote(lambda generator: os.getpid()), timeout=60))
        slow.suspend()
        buffer = RolloutBuffer(pools.generators, pools.scorers, slots=groups, deadline_s=120)
        for prompt in prompts:
            buffer.start(Request((prompt,), 1, config.evaluation.sampling, 0), policy_of_folder(start))
        calls, end = list(buffer.started), time.monotonic() + 200
        while sum(call.over for call in calls) < groups - 2 and time.monotonic() < end:
            buffer.tend()
            time.sleep(0.02)
        assert len(buffer.running) <= 2
        slow.resume()
        assert [call.metadata["texts"][0] for call in buffer.take(groups)] == expected
    (_, most), (_, least) = Counter(call.generator for call in calls).most_common()
    assert 1 <= least <= 2 and most == groups - least
    assert buffer.reissued == buffer.killed == 0


def test_a_group_of_which_generators_die_is_dropped_once_others_are_done(
    ray_cluster: None, config_of: ConfigOf, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUDGETS, Kind.LOST, 2)
    config = config_of(tmp_path / "run", "cluster.generators=2")
    examples = open_data(config.task, None, 0).examples("validation", 3)
    prompts = held_out_prompts(load_tokenizer(start), examples, config.data.max_prompt_length)
    with closing(Pools(config, start)) as pools:
        evaluate(pools, policy_of_folder(start), prompts, config)
        generators = pools.generators.actors
        pids = [actor.__ray_call__.remote(lambda generator: os.getpid()) for actor in generators]
        first, second = (psutil.Process(pid) for pid in ray.get(pids, timeout=60))
        buffer = RolloutBuffer(pools.generators, pools.scorers, slots=3, deadline_s=120)
        pools.generators.refresh()
        first.suspend()  # with the deadly group, which is started first
        for prompt in prompts:
            buffer.start(Request((prompt,), 1, config.evaluation.sampling, 0), policy_of_folder(start))
        deadly, *others = list(buffer.started)
        end = time.monotonic() + 200

        def tend_until(reached: Callable[[], bool]) -> None:
            while not reached() and time.monotonic() < end:
                buffer.tend()
                time.sleep(0.01)

        tend_until(lambda: all(call.over for call in others))
        second.suspend()
        ray.kill(generators[0], no_restart=False)
        tend_until(lambda: deadly.count(Kind.LOST) == 1 and deadly in buffer.running.values())
        ray.kill(generators[deadly.generator], no_restart=False)
        tend_until(lambda: deadly.over)
        taken = buffer.take(3)
    assert taken[0].dropped.startswith("was lost 2 times; last at generator ")
    assert [len(call.metadata["texts"]) for call in taken[1:]] == [1, 1]


def frozen(titled: Callable[[], list[psutil.Process]], over: threading.Event) -> threading.Thread:
    """Stops every process that is ``titled`` so, whenever there is one, until ``over``."""

    def freeze() -> None:
        while not over.wait(0.01):
            for process in titled():
                with suppress(psutil.Error):  # it has just ended
                    process.suspend()

    freezing = threading.Thread(target=freeze)
    freezing.start()
    return freezing


class Hanging(Generator):
    """A generator whose constructor does not end."""

    def __init__(self, *arguments: Any) -> None:
        time.sleep(600)


@pytest.mark.parametrize(
    ("title", "said"),
    [
        (
            "ray::Generator.generate",
            "group -1 was lost 1 times; last at generator 0, scorer 0: generator 0 did not end it within 3 s "
            "(cluster.deadline_s) and was killed",
        ),
        (
            "",  # its constructor does not end
            "no group is under way since 3 s (cluster.deadline_s): 0 of 1 are ready, 1 wait (group -1); "
            "0 of 1 generators and",
        ),
    ],
    ids=["in every call", "before it is up"],
)
def test_a_generator_that_always_hangs_ends_the_wait_with_its_group_and_state(
    ray_cluster: None,
    processes: Processes,
    config_of: ConfigOf,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    title: str,
    said: str,
) -> None:
    monkeypatch.setitem(BUDGETS, Kind.LOST, 1)
    config, over = config_of(tmp_path / "run", "cluster.generators=1"), threading.Event()
    examples = open_data(config.task, None, 0).examples("validation", 2)
    prompts = held_out_prompts(load_tokenizer(start), examples, config.data.max_prompt_length)
    if not title:
        monkeypatch.setattr("actors.pools.Generator", Hanging)
    freezing = frozen(partial(processes, title) if title else lambda: [], over)
    try:
        with closing(Pools(config, start)) as pools:
            buffer = RolloutBuffer(pools.generators, pools.scorers, slots=1, deadline_s=3)
            buffer.start(Request(tuple(prompts), 1, config.evaluation.sampling, 0), policy_of_folder(start))
            with pytest.raises(RolloutError, match=re.escape(said)):
                if title:
                    ray.get(pools.generators.actors[0].__ray_ready__.remote(), timeout=60)
                buffer.take(1)
    finally:
        over.set()
        freezing.join(timeout=60)


def test_every_stage_of_a_recipe_leaves_a_complete_run_folder(
    ray_cluster: None, small_run: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phase = "{steps: 3, batch_size: 8, optimizer: {learning_rate: 0.001}}"
    architecture = f"model.make={{max_sequence_length: 64, pretraining: [{phase}]}}"
    made = ["model.path=null", architecture, f"sft={phase}", "rl.steps=1", "cluster.sft_workers=2"]
    run_recipe(load_config("sudoku-tiny", small_run(tmp_path / "run", *made)))
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert [row["stage"] for row in summary["rows"]] == ["base", "sft", "rl"]
    assert all(row["n"] == 16 and len(row["ci95"]) == 2 for row in summary["rows"])
    assert abs(sum(summary["actor_seconds_share"].values()) - 1) < 1e-6
    assert summary["peak_memory_bytes"] > 100 * 2**20
    stages = [json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["pretrain-1"] * 3 + ["sft"] * 3 + ["rl"] * 2
    for part in (
        "config.yaml",
        "curves.png",
        "report.html",
        "rollouts/step-00001.parquet",
        "models/rl/config.json",
    ):
        assert (run / part).stat().st_size > 0
    assert list((run / "tensorboard").rglob("events.out.tfevents.*"))
    shown = capsys.readouterr().out
    assert "SFT + diffu-GRPO" in shown and "Peak memory" in shown and "Actor time" in shown


def supervised(config: Config, interrupt: Any = lambda: False) -> dict[str, torch.Tensor]:
    """The weights after the supervised stages of ``config``."""
    assert config.run_dir is not None
    with RunFolder.open(config.run_dir, config) as run, Progress() as progress:
        stages = supervised_stages(config, run, progress, interrupt)
    return load_file(stages["sft"] / "model.safetensors")


def sft_config(config_of: ConfigOf, run_dir: Path, *overrides: str) -> Config:
    sft = "sft={steps: 4, batch_size: 8, examples: 6, optimizer: {learning_rate: 0.001}}"
    return config_of(run_dir, sft, *overrides)


def test_sft_on_two_workers_equals_plain_single_process_training(
    ray_cluster: None, config_of: ConfigOf, start: Path, tmp_path: Path
) -> None:
    config = sft_config(config_of, tmp_path / "run", "cluster.sft_workers=2")
    two = supervised(config)
    model, tokenizer = load_model(start), load_tokenizer(start)
    assert config.sft is not None
    phase = Phase("sft", 1000, config.sft)
    optimizer = adamw(model, config.sft.optimizer)
    demonstrations = Demonstrations(config, phase, tokenizer, model.config.eos_token_id)
    for step in range(4):
        training_step(MaskedDiffusionLoss(model), model, optimizer, demonstrations, step)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)


def test_interrupted_sft_checkpoints_and_continues_bit_identically(
    ray_cluster: None, config_of: ConfigOf, start: Path, tmp_path: Path
) -> None:
    whole = supervised(sft_config(config_of, tmp_path / "whole"))
    config = sft_config(config_of, tmp_path / "parts")
    with pytest.raises(Interrupted):
        supervised(config, lambda: True)
    stopped = checkpoint.latest(tmp_path / "parts" / "checkpoints" / "sft")
    assert stopped is not None and checkpoint.load_state(stopped)["step"] < 4
    checkpoints = tmp_path / "parts" / "checkpoints"
    checkpoints.rename(tmp_path / "elsewhere")  # a volume that is not mounted
    with pytest.raises(DataError, match=r"has saved a checkpoint of step \d \(sft\), but"):
        supervised(config)
    shutil.rmtree(checkpoints, ignore_errors=True)
    (tmp_path / "elsewhere").rename(checkpoints)
    assert identical(supervised(config), whole)
