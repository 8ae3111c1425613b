"""Learner: one rank of those that hold the trained policy and its optimiser, learn, and publish weights."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from actors.broadcast import Circle, Member
from actors.failures import fetched
from actors.meeting_store import join, new_store
from actors.policy import Parcel
from d1ray.config.errors import DataError, RunFailed
from d1ray.config.run import Config
from d1ray.diffusion.likelihood import ViewLogps
from d1ray.models.load import load_model
from d1ray.models.lora import add_lora, unadapted
from d1ray.models.save import save_model
from d1ray.models.sharding import shard, spread_like
from d1ray.models.tokenizer import load_tokenizer
from d1ray.models.weights import bucket_names, live_tensors, pack
from d1ray.rl import schema
from d1ray.rl.batch import batch_of
from d1ray.rl.learning import learn
from d1ray.rl.optimizer import adamw, move
from d1ray.run import checkpoint, checkpoint_tensors, claims, lease
from d1ray.run.atomic import replacing
from d1ray.run.checkpoint import Place
from d1ray.run.checkpoint_writer import CheckpointWriter
from d1ray.sft.model import start_model


@dataclass(frozen=True)
class Standing:
    """Where the learner stands: the versions of policy and reference, and in how many buckets either goes."""

    version: int
    reference_version: int
    buckets: int
    unwritten: str = ""  # why the last step's rollouts could not be written


class Learner:
    """The policy in training, or one rank's part of it.

    Args:
        config: the run's. ``model.precision`` is of matrix products and of weights that an adapter leaves
            alone; torch's threads are part of what makes results reproducible. With ``cluster.colocated`` a
            generator has the GPU but for the time of ``learn``, and everything is on the CPU meanwhile.
        start: the model folder RL starts from, which is also the first reference.
        resume: a complete checkpoint to continue from, or None.
        incarnation: marks what is published.
        rank: which of the ``cluster.learners`` this is; the first one writes and publishes. Every method is
            called on all of them, in the same order.
    """

    def __init__(
        self, config: Config, start: Path, resume: Place | None = None, incarnation: int = 1, rank: int = 0
    ):
        cluster = config.cluster
        assert config.rl is not None
        self.config, self.seed, self.bf16 = config.rl, config.seed, config.model.precision == "bf16"
        self.start, self.resume, self.incarnation = start, resume, incarnation
        self.places = lease.places_of(config)
        self.rank, self.world, self.deadline_s = rank, cluster.learners, cluster.deadline_s
        torch.set_num_threads(cluster.learner_threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.moves = cluster.colocated and not self.config.offload
        kept = "cpu" if cluster.colocated or self.config.offload else self.device
        self.home = torch.device(kept)  # of weights and optimiser state while it does not learn
        self.first = rank == 0
        self.grouped = self.world > 1 or self.config.offload  # FSDP keeps even one rank's weights on the CPU
        self.store: Store | None = None  # where the ranks and others meet; it ends with the first one
        self.member = Member()
        self.version = 0
        self.unwritten = ""
        self.writer: CheckpointWriter | None = None  # of the checkpoint under way

    def meeting_point(self, visited: bool = False) -> Store | None:
        """Where the other ranks find this one, and others if it is ``visited``; None if nobody does."""
        if self.world > 1 or visited:
            self.store = new_store(self.deadline_s)
        return self.store

    def build(self, meeting: Store | None) -> Standing:
        """Joins the other ranks; loads the model, and what the checkpoint holds."""
        if self.grouped:
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            wait = timedelta(seconds=self.deadline_s)
            join(backend, meeting or HashStore(), self.rank, self.world, wait)
        self.tokenizer = load_tokenizer(self.start)
        frozen = torch.bfloat16 if self.bf16 and self.config.lora else torch.float32
        self.model = load_model(self.start, frozen, self.home)
        self.model.gradient_checkpointing = self.config.gradient_checkpointing
        if self.config.lora:
            add_lora(self.model, self.config.lora, self.seed)
        self.scorer = ViewLogps(self.model, self.bf16)
        if self.grouped and self.config.sharding == "fsdp":
            shard(self.scorer, self.model, self.device, self.bf16, self.config.offload)
        self.live = live_tensors(self.model)
        self.optimizer = adamw(self.model, self.config.optimizer)
        self._move(self.home)
        self.reference = _copy(self.live) if self.config.algorithm.needs_reference else {}
        self.reference_version = self.updates_since_sync = self.failed_in_a_row = 0
        with checkpoint.fetched(self.resume, verify=self.first) as folder:
            if folder is not None:
                self._resume(folder)
        self.names = bucket_names(self.live)
        self.claims = claims.in_force(self.places)  # the driver sees that they are its own
        return self._standing()

    def _resume(self, folder: Path) -> None:
        _fill(self.live, checkpoint_tensors.read_model(folder))
        checkpoint_tensors.restore_optimizer(self.optimizer, checkpoint_tensors.read(folder, "optimizer"))
        learner = checkpoint.load_state(folder)["learner"]
        self.version, self.reference_version = learner["version"], learner["reference_version"]
        self.updates_since_sync = learner["updates_since_sync"]
        if self.reference_version:
            _fill(self.reference, checkpoint_tensors.read(folder, "reference"))

    def _standing(self) -> Standing:
        return Standing(self.version, self.reference_version, len(self.names), self.unwritten)

    def parcel(self, which: str, index: int, circle: Circle | None = None) -> tuple[Parcel | None, str]:
        """A bucket of the "policy" or the "reference", from the first rank; the caller owns it, so it
        outlives this actor. Of sharded weights it is gathered tensor by tensor.

        The first rank also sends it to ``circle``, and returns what went wrong there, or "".
        """
        tensors = self.live if which == "policy" else self.reference
        version = self.version if which == "policy" else self.reference_version
        cast = torch.bfloat16 if self.bf16 and not self.config.lora else None  # as the generators hold them
        send = partial(self.member.send, circle) if circle else None
        bucket = pack(tensors, self.names[index], self.first, cast, send)
        wrong = self.member.failed.get(circle.name, "") if circle else ""
        return Parcel(self.incarnation, version, bucket) if self.first else None, wrong

    def learn(
        self, tables: Sequence[ray.ObjectRef], step: int, rollouts: Path
    ) -> tuple[dict[str, float], Standing]:
        """Outer step ``step``: mu inner updates on the groups behind ``tables`` (``schema.SCORED``).

        Writes the rollouts with their advantages to ``rollouts``, or says in its standing why it cannot.
        Returns metrics.

        Raises:
            ObjectsLost, NoRoom: a table cannot be had; nothing has been learned.
            RunFailed: ``rl.max_nonfinite`` updates in a row had no finite loss and gradient.
        """
        table = pa.concat_tables(fetched(list(tables), self.deadline_s, f"rollouts of step {step + 1}"))
        started_at, started = time.time(), time.perf_counter()
        algorithm = self.config.algorithm
        advantages = algorithm.advantages(table["reward"].to_numpy().reshape(-1, self.config.group_size))
        if self.first:
            claims.check(self.claims[:1])  # of the run folder
            self._write(table, advantages, rollouts)
        eos = self.model.config.eos_token_id
        batch = batch_of(table, advantages, eos, algorithm.estimator.views_per_update, self.device)
        stale = min(table["policy_version"].to_pylist()) < self.version
        self._move(self.device)
        try:
            metrics = learn(
                self.model, self.optimizer, batch, step, self.seed, self.config, self.scorer, stale
            )
        finally:
            self._move(self.home)
        self.version += 1
        self._sync_reference(int(metrics["updates"]))
        self._count_failures(int(metrics["nonfinite"]), int(metrics["updates"]))
        metrics |= {
            "reference_version": self.reference_version,
            "reward": float(np.mean(table["reward"].to_numpy())),
            "started_learn": started_at,
            "seconds_learn": time.perf_counter() - started,
        }
        return metrics, self._standing()

    def _write(self, table: pa.Table, advantages: NDArray[np.float32], rollouts: Path) -> None:
        """A full disk is told of when the step is done: the other ranks are at it already."""
        column, self.unwritten = pa.array(advantages.flatten()), ""
        try:
            with replacing(rollouts) as unfinished:
                pq.write_table(table.append_column(schema.ROLLOUT.field("advantage"), column), unfinished)
        except OSError as error:
            self.unwritten = f"{rollouts} cannot be written: {error.strerror or error}"

    def _move(self, device: torch.device) -> None:
        """Weights and optimiser state; the reference is not needed to learn, so it stays at home."""
        if self.moves:
            self.live = {}  # or the memory they leave would still be held
            move(self.scorer, self.optimizer, device)
            self.live = live_tensors(self.model)

    def _count_failures(self, failed: int, applied: int) -> None:
        self.failed_in_a_row = 0 if applied else self.failed_in_a_row + failed
        if self.failed_in_a_row >= self.config.max_nonfinite:
            raise RunFailed(
                f"{self.failed_in_a_row} updates in a row had a loss or gradient that is not finite "
                f"(rl.max_nonfinite={self.config.max_nonfinite}); lower the learning rate, "
                f"or look at the rollouts"
            )

    def _sync_reference(self, updates: int) -> None:
        self.updates_since_sync += updates
        every = self.config.reference_sync_updates
        if self.reference and every is not None and self.updates_since_sync >= every:
            _fill(self.reference, self.live.items())
            self.reference_version, self.updates_since_sync = self.version, 0

    def save_checkpoint(self, root: Place, step: int, state: dict[str, Any], best: int) -> None:
        """Copies policy, optimiser and moved reference, and goes on while a thread writes them, with the
        driver's ``state``, as a checkpoint. Ends the writing of the one before."""
        self.finish_checkpoint()
        tensors = {"optimizer": checkpoint_tensors.optimizer_tensors(self.optimizer)}
        if self.reference_version:
            tensors["reference"] = self.reference
        learner = {
            "version": self.version,
            "reference_version": self.reference_version,
            "updates_since_sync": self.updates_since_sync,
        }
        keep = self.config.keep_checkpoints
        whole = state | {"learner": learner}
        self.writer = CheckpointWriter(
            root, step, self.model, self.tokenizer, tensors, whole, keep, best, self.start, self.claims
        )

    def finish_checkpoint(self) -> None:
        """Waits until all ranks have written. Raises ``RunFailed`` if one could not."""
        writer, self.writer = self.writer, None
        if writer is not None:
            writer.finish()

    def write_model(self, saved: Place | None, folder: Path) -> None:
        """Writes the policy of a checkpoint, or for None the start model, as a Hugging Face folder."""
        with checkpoint.fetched(saved) as checkpointed:
            claims.check(self.claims)
            save_model(unadapted(start_model(self.start, checkpointed)[0]), folder, self.tokenizer)

    def __repr__(self) -> str:
        return f"Learner(rank={self.rank}, version={self.version})"


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _fill(targets: Mapping[str, Tensor], values: Iterable[tuple[str, Tensor]]) -> None:
    missing = set(targets)
    with torch.no_grad():
        for name, value in values:
            targets[name].copy_(spread_like(value, targets[name]))
            missing.discard(name)
    if missing:
        raise DataError(f"a checkpoint lacks {len(missing)} tensors, {min(missing)} among them; remove it")
