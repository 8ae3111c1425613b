"""Learner: holds the trained policy and its optimiser, learns from rollouts, publishes weights."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from d1ray import checkpoint, schema
from d1ray.config import RLConfig
from d1ray.models import load_model, load_tokenizer, save_model
from d1ray.models.weights import Bucket, bucket_names, pack
from d1ray.rl.batch import advantages_of, batch_of
from d1ray.rl.learning import learn
from d1ray.rl.optimizer import adamw


class Learner:
    """The policy in training.

    Args:
        start: the model folder RL starts from, which is also the first reference.
        resume: a complete checkpoint to continue from, or None.
        config: the RL settings.
        seed: the run's seed.
        threads: torch's intra-op threads; part of what makes results reproducible.
        deadline_s: longest wait for an object.
    """

    def __init__(
        self, start: Path, resume: Path | None, config: RLConfig, seed: int, threads: int, deadline_s: float
    ):
        torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.config, self.seed, self.deadline_s = config, seed, deadline_s
        self.tokenizer = load_tokenizer(start)
        self.model = load_model(resume / "model" if resume else start).to(device)
        self.optimizer = adamw(self.model, config.optimizer)
        self.reference = load_model(start).to(device)
        self.reference_version = self.version = self.updates_since_sync = 0
        if resume:
            checkpoint.restore_optimizer(self.optimizer, checkpoint.load_tensors(resume, "optimizer"))
            self.reference.load_state_dict(checkpoint.load_tensors(resume, "reference"), strict=False)
            learner = checkpoint.load_state(resume)["learner"]
            self.version, self.reference_version = learner["version"], learner["reference_version"]
            self.updates_since_sync = learner["updates_since_sync"]
        self.names = bucket_names(self.model)

    def bucket_count(self) -> int:
        """How many objects ``publish`` and ``publish_reference`` return beside the version."""
        return len(self.names)

    def publish(self) -> tuple[int | Bucket, ...]:
        """The policy's version and its buckets; the caller owns them, so they outlive this actor."""
        return self.version, *(pack(self.model, names) for names in self.names)

    def reference_version_now(self) -> int:
        """The version of the policy that the reference is a copy of (0: the start model)."""
        return self.reference_version

    def publish_reference(self) -> tuple[int | Bucket, ...]:
        """The reference's version and its buckets."""
        return self.reference_version, *(pack(self.reference, names) for names in self.names)

    def learn(self, tables: Sequence[ray.ObjectRef], step: int, rollouts: Path) -> dict[str, float]:
        """Outer step ``step``: mu inner updates on the groups behind ``tables`` (``schema.SCORED``).

        Writes the rollouts with their advantages to ``rollouts``. Returns metrics.
        """
        table = pa.concat_tables(ray.get(list(tables), timeout=self.deadline_s))
        started = time.perf_counter()
        advantages = advantages_of(table, self.config.group_size).flatten()
        pq.write_table(table.append_column(schema.ROLLOUT.field("advantage"), pa.array(advantages)), rollouts)
        eos, device = self.model.config.eos_token_id, next(self.model.parameters()).device
        batch = batch_of(table, self.config.group_size, eos, device)
        metrics = learn(self.model, self.optimizer, batch, step, self.seed, self.config)
        self.version += 1
        self._sync_reference(int(metrics["updates"]))
        return metrics | {
            "reference_version": self.reference_version,
            "reward": float(np.mean(table["reward"].to_numpy())),
            "seconds_learn": time.perf_counter() - started,
        }

    def _sync_reference(self, updates: int) -> None:
        self.updates_since_sync += updates
        every = self.config.reference_sync_updates
        if every is not None and self.updates_since_sync >= every:
            self.reference.load_state_dict(self.model.state_dict())
            self.reference_version, self.updates_since_sync = self.version, 0

    def save_checkpoint(self, root: Path, step: int, state: dict[str, Any]) -> Path:
        """Writes a checkpoint of policy, optimiser and moved reference, with the driver's ``state``."""
        tensors = {"optimizer": checkpoint.optimizer_tensors(self.optimizer)}
        if self.reference_version:
            tensors["reference"] = dict(self.reference.state_dict())
        learner = {
            "version": self.version,
            "reference_version": self.reference_version,
            "updates_since_sync": self.updates_since_sync,
        }
        keep = self.config.keep_checkpoints
        return checkpoint.save(
            root, step, self.model, self.tokenizer, tensors, state | {"learner": learner}, keep
        )

    def save_model(self, folder: Path) -> None:
        """Writes the policy as a Hugging Face folder."""
        save_model(self.model, folder, self.tokenizer)

    def __repr__(self) -> str:
        return f"Learner(version={self.version})"
