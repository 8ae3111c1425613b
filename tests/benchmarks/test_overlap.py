"""What overlapped generation gains: seconds a step with staleness 1 beside staleness 0, in one run each.

Generator and learner have a core each, and cost about the same.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from d1ray.config.run import Config

STEPS, SKIPPED, TARGET = 14, 4, 1.3
SETTINGS = [
    f"rl.steps={STEPS}",
    f"rl.validate_every={STEPS}",
    f"rl.checkpoint_every={STEPS}",
    "rl.prompts_per_step=16",
    "rl.group_size=8",
    "rl.mu=22",
    "rl.sampling.decoding=low_confidence",
    "rl.algorithm.estimator.mask_scope=completion",
    "cluster.generators=1",
    "cluster.generator_cpus=1",
    "cluster.learner_cpus=1",
    "cluster.learner_threads=1",
]


@pytest.mark.timeout(600)
def test_a_stale_step_overlaps_generation_and_learning(
    ray_cluster: None,
    config_of: Callable[..., Config],
    reinforced: Callable[..., object],
    tmp_path: Path,
) -> None:
    seconds, rewards = {}, {}
    for staleness in (0, 1):
        run = tmp_path / str(staleness)
        reinforced(config_of(run, *SETTINGS, f"rl.staleness={staleness}"))
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
        seconds[staleness] = statistics.median(row["seconds_step"] for row in rows[SKIPPED:])
        rewards[staleness] = [round(row["reward"], 3) for row in rows]
        generate = statistics.median(row["seconds_generate"] + row["seconds_logprob"] for row in rows)
        learn = statistics.median(row["seconds_learn"] for row in rows)
        print(
            f"\nstaleness {staleness}: {seconds[staleness]:.2f} s a step (generating {generate:.2f} s, "
            f"learning {learn:.2f} s), rewards {rewards[staleness]}"
        )
    gain = seconds[0] / seconds[1]
    print(f"overlap gains {gain:.2f}, held to {TARGET}")
    assert gain >= TARGET
