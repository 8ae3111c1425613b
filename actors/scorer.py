"""Scorer: judges completions on CPUs."""

from typing import Any

import numpy as np
import pyarrow as pa

from d1ray.config.evaluation import ScoringConfig
from d1ray.rl.scoring import score_rollouts
from d1ray.tasks.checker import Checker
from d1ray.tasks.task import Task


class Scorer:
    """Extends a generator's table with rewards and verdicts; the checks run in a subprocess.

    ``place`` is its own in the pool.
    """

    def __init__(self, task: Task, scoring: ScoringConfig, place: int = -1):
        self.task, self.place = task, place
        self.checker = Checker(task, scoring.timeout_s, scoring.memory_gb)

    def score(self, table: pa.Table, generated: dict[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
        """Scores a ``schema.GENERATED`` table.

        Returns:
            The ``schema.SCORED`` table, and the small metadata that the driver reads.
        """
        scored = score_rollouts(table, self.task, self.checker.check, self.place)
        components = [dict(row) for row in scored["components"].to_pylist()]
        return scored, generated | {
            "incarnation": scored["incarnation"][0].as_py(),
            "policy_version": scored["policy_version"][0].as_py(),
            "correct": scored["correct"].to_pylist(),
            "partial": scored["partial"].to_pylist(),
            "formatted": scored["formatted"].to_pylist(),
            "components": {name: [row[name] for row in components] for name in components[0]},
            "parse_failures": scored["parsed"].null_count,
            "timeouts": scored["failure"].to_pylist().count("timeout"),
            "crashes": scored["failure"].to_pylist().count("crash"),
            "forwards": int(np.sum(scored["forwards"].to_numpy())),
            "texts": scored["text"].to_pylist(),
            "tokens": sum(len(ids) for ids in scored["completion_ids"]),
            "seconds_generate": scored["seconds_generate"][0].as_py(),
            "seconds_logprob": scored["seconds_logprob"][0].as_py(),
            "seconds_score": scored["seconds_score"][0].as_py(),
        }

    def __repr__(self) -> str:
        return f"Scorer(place={self.place})"
