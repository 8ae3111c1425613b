"""Twenty kills at random moments in one overlapped run: it ends, and every group was learned from once."""

import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from d1ray.config.run import Config

STEPS, KILLS = 110, 20
KINDS = {"Generator": 5, "Scorer": 3, "Learner": 2}  # and how often each is chosen
SETTINGS = [
    f"rl.steps={STEPS}",
    "rl.staleness=1",
    f"rl.validate_every={STEPS}",
    "rl.checkpoint_every=2",
    "cluster.generators=2",
    "cluster.learner_cpus=0.5",
]


def lines(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.slow
@pytest.mark.timeout(560)
def test_a_run_survives_twenty_random_kills_and_learns_from_every_group_once(
    ray_cluster: None,
    config_of: Callable[..., Config],
    reinforced: Callable[..., object],
    processes: Callable[..., list[psutil.Process]],
    tmp_path: Path,
) -> None:
    run, draw, over = tmp_path / "run", random.Random(0), threading.Event()
    kills: list[str] = []
    waits: defaultdict[str, list[float]] = defaultdict(list)

    def kill_at_random() -> None:
        while len(kills) < KILLS and not over.is_set():
            over.wait(draw.uniform(0.3, 1.5))
            (kind,) = draw.choices(list(KINDS), list(KINDS.values()))
            alive, before = processes(f"ray::{kind}"), len(lines(run))
            if not alive or not before:
                continue
            draw.choice(alive).kill()
            kills.append(kind)
            killed = time.monotonic()
            if kind == "Learner":  # it goes back to its checkpoint: wait for it to learn again
                while not over.is_set() and any(p.is_running() for p in alive):
                    time.sleep(0.05)
                before = len(lines(run))
            while not over.is_set() and len(lines(run)) == before and time.monotonic() - killed < 60:
                time.sleep(0.05)
            waits[kind].append(time.monotonic() - killed)

    killer = threading.Thread(target=kill_at_random)
    killer.start()
    started = time.monotonic()
    try:
        reinforced(config_of(run, *SETTINGS))
    finally:
        over.set()
        killer.join(timeout=60)
    print(
        f"\n{time.monotonic() - started:.0f} s, {len(kills)} kills; seconds until the next step was learned:"
    )
    for kind, seconds in waits.items():
        print(
            f"  {kind}: {len(seconds)} kills, mean {sum(seconds) / len(seconds):.1f}, most {max(seconds):.1f}"
        )
    assert len(kills) == KILLS and set(kills) == set(KINDS)
    rows = lines(run)
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert all(row["policy_age"] <= 1 and row["dropped_groups"] == 0 for row in rows[1:])
    groups = []
    for step in range(1, STEPS + 1):
        table = pq.read_table(run / "rollouts" / f"step-{step:05d}.parquet", columns=["group_id"])
        groups += table["group_id"].to_pylist()[::4]
    assert groups == list(range(4 * STEPS))
