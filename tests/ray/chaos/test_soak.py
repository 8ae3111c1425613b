"""Kills at random moments in one overlapped run: it ends, and every group was learned from once."""

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

KINDS = {"Generator": 5, "Scorer": 3, "Learner": 2}  # and how often each is chosen, beyond once
SETTINGS = [
    "rl.staleness=1",
    "rl.validate_every=1000",
    "rl.checkpoint_every=2",
    "cluster.generators=2",
    "cluster.learner_cpus=0.5",
]


def lines(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.parametrize(
    ("count", "steps"),
    [
        pytest.param(3, 40, id="three"),
        pytest.param(20, 160, id="twenty", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_a_run_survives_random_kills_and_learns_from_every_group_once(
    ray_cluster: None,
    config_of: Callable[..., Config],
    reinforced: Callable[..., object],
    processes: Callable[..., list[psutil.Process]],
    tmp_path: Path,
    count: int,
    steps: int,
) -> None:
    run, draw, over = tmp_path / "run", random.Random(0), threading.Event()
    victims = [*KINDS, *draw.choices(list(KINDS), list(KINDS.values()), k=count - len(KINDS))]
    draw.shuffle(victims)
    kills: list[str] = []
    waits: defaultdict[str, list[float]] = defaultdict(list)

    def kill_at_random() -> None:
        while len(kills) < count and not over.is_set():
            over.wait(draw.uniform(0.3, 1.5))
            kind = victims[len(kills)]
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
        reinforced(config_of(run, *SETTINGS, f"rl.steps={steps}"))
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
    assert kills == victims and set(kills) == set(KINDS)
    rows = lines(run)
    assert [row["step"] for row in rows] == list(range(steps + 1))
    assert all(row["policy_age"] <= 1 and row["dropped_groups"] == 0 for row in rows[1:])
    groups = []
    for step in range(1, steps + 1):
        table = pq.read_table(run / "rollouts" / f"step-{step:05d}.parquet", columns=["group_id"])
        groups += table["group_id"].to_pylist()[::4]
    assert groups == list(range(4 * steps))
