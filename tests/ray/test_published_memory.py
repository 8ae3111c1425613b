"""The object store forgets weights that no call can ask for any more."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from actors.learner_gang import LearnerGang
from actors.policy import PolicyRef
from d1ray.config.run import Config
from d1ray.run.folder import RunFolder

GONE_WITHIN_S = 30


def stored(ids: list[bytes]) -> list[bool]:
    core_worker = ray._private.worker.global_worker.core_worker
    return [core_worker.object_exists(ray.ObjectRef(binary)) for binary in ids]


@pytest.mark.parametrize("staleness", [0, 1])
def test_after_a_step_the_store_holds_no_parcels_of_versions_before_the_last_two(
    ray_cluster: None,
    config_of: Callable[..., Config],
    reinforced: Callable[..., dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    staleness: int,
) -> None:
    published: dict[int, list[bytes]] = {}
    seen = []
    publish, log = LearnerGang.publish, RunFolder.log

    def remember(self: LearnerGang, *arguments: Any) -> PolicyRef:
        policy = publish(self, *arguments)
        published.setdefault(policy.version, [ref.binary() for ref in policy.policy.parcels])
        return policy

    def look(self: RunFolder, row: dict[str, Any]) -> None:
        """A row is logged once the step's slots are released."""
        log(self, row)
        version, end = row["step"], time.monotonic() + GONE_WITHIN_S
        old = [binary for v, ids in published.items() if v < version - 1 for binary in ids]
        while any(stored(old)) and time.monotonic() < end:
            time.sleep(0.1)
        seen.append((len(old), any(stored(old)), all(stored(published[version]))))

    monkeypatch.setattr(LearnerGang, "publish", remember)
    monkeypatch.setattr(RunFolder, "log", look)
    more = ["rl.steps=4", "rl.algorithm=wd1", "cluster.generators=1", f"rl.staleness={staleness}"]
    reinforced(config_of(tmp_path / "run", *more))
    assert seen == [(count, False, True) for count in (0, 0, 1, 2, 3)]
