"""LearnerGang: the driver's side of the learner's ranks. It passes references and waits with a deadline."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from actors.broadcast import Broadcasts, Circle
from actors.failures import STORE_FULL, LearnerLost, StoreFull
from actors.first_error import check
from actors.learner import Learner, Standing
from actors.placement import at, is_leaving, label, learner_rank, placed
from actors.policy import PolicyRef, Weights
from actors.pool import Pool
from d1ray.config.run import Config
from d1ray.run.checkpoint import Place

POLL_S = 0.02
NO_ROOM_PAUSE_S = 0.5  # between tries to hand over weights


class LearnerGang:
    """Starts the learner's ranks and kills them on ``close``. They live and die together.

    Args:
        start: the model folder RL starts from.
        resume: a complete checkpoint to continue from, or None.
        incarnation: marks the policies published from here.
        places: those of the generators, if rank i shares the GPU of generator i (``shared_places``).
        patience: called every ``POLL_S`` while the ranks are built, learn or publish, not while they write
            files. What it raises ends the wait, and the gang is of no further use.
        placement_s: longest wait for a place for all ranks; None for ``cluster.placement_s``.
        note: is told what a user should know.

    Every method calls all ranks and waits for them, at most ``cluster.deadline_s``.

    Raises:
        LearnerLost: a rank died, or its device failed, or it did not answer in time; the gang is of no
            further use.
        RunFailed: a rank's disk is full, or its memory.
        ResourceError: there is no room for all ranks.
    """

    def __init__(
        self,
        config: Config,
        start: Path,
        resume: Place | None,
        incarnation: int,
        places: PlacementGroup | None = None,
        patience: Callable[[], object] = lambda: None,
        placement_s: float | None = None,
        note: Callable[[str], None] = lambda text: None,
    ):
        self.note = note
        c = config.cluster
        assert config.rl is not None
        self.needs_reference = config.rl.algorithm.needs_reference
        self.lora, self.incarnation, self.deadline_s = config.rl.lora, incarnation, c.deadline_s
        self.patience = patience
        self.actors: list[Any] = []
        self.group: PlacementGroup | None = None  # its own
        self.policy: Weights | None = None
        self.reference: Weights | None = None
        try:
            kind = learner_rank(c)
            if kind.bundle and places is None:  # a part of a gang would only hold what others need
                places = self.group = placed(kind, placement_s or c.placement_s, patience)
            self.places = places
            rank, run = ray.remote(Learner), label(config)
            for number in range(c.learners):
                options: dict[str, Any] = {
                    "name": f"{run}-learner-{number}",
                    "num_cpus": c.learner_cpus,
                    "num_gpus": c.learner_gpus,
                    "resources": dict(c.learner_resources),
                }
                self.actors.append(
                    rank.options(**options, **at(places, number)).remote(
                        config, start, resume, incarnation, number
                    )
                )
            met = [self.actors[0].meeting_point.remote(c.broadcast)]
            meeting = self._of_first(met, "meeting_point", patience)
            self.broadcasts = Broadcasts(c, incarnation, meeting)
            refs = [actor.build.remote(meeting) for actor in self.actors]
            self.standing: Standing = self._of_first(refs, "build", patience)
        except BaseException:
            self.close()
            raise

    def learn(
        self,
        tables: Sequence[ray.ObjectRef],
        step: int,
        rollouts: Path,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Outer step ``step`` on the groups behind ``tables``; returns its metrics. While the ranks learn,
        ``meanwhile`` is called every ``POLL_S``."""
        metrics: dict[str, float]
        refs = [actor.learn.remote(list(tables), step, rollouts) for actor in self.actors]

        def wait() -> None:
            self.patience()
            meanwhile()

        metrics, self.standing = self._of_first(refs, "learn", wait)
        return metrics

    def publish(self, generators: Pool | None = None) -> PolicyRef:
        """The current policy, its parcels owned by the driver; the reference again only when it has moved.

        Returns once the ranks have handed everything over: a parcel is then in the object store. With
        ``cluster.broadcast`` those of ``generators`` that are idle have received the policy.

        Raises:
            StoreFull: there was no room for a parcel for ``deadline_s``.
        """
        now = self.standing
        if self.policy is None or self.policy.version != now.version:
            policy = Weights(now.version, lora=self.lora)
            circle = self.broadcasts.start(generators, policy)
            parcels, failure = self._parcels("policy", circle)
            if circle:
                self.broadcasts.finish(failure, self.note)
            self.policy = replace(policy, parcels=parcels)
        if self.needs_reference and (
            self.reference is None or self.reference.version != now.reference_version
        ):
            parcels, _ = self._parcels("reference")
            self.reference = Weights(now.reference_version, parcels, lora=self.lora)
        return PolicyRef(self.incarnation, self.policy, self.reference)

    def save_checkpoint(self, root: Place, step: int, state: dict[str, Any], best: int) -> None:
        """Begins a checkpoint with the driver's ``state``; it is written beside what comes next."""
        self._all("save_checkpoint", root, step, state, best)

    def finish_checkpoint(self) -> None:
        """Waits until the checkpoint that was begun last is written."""
        self._all("finish_checkpoint")

    def write_model(self, saved: Place | None, folder: Path) -> None:
        """Writes the policy of a checkpoint, or for None the start model, as a Hugging Face folder."""
        self._of_first([self.actors[0].write_model.remote(saved, folder)], "write_model")

    def is_leaving(self) -> bool:
        """Whether a rank's node has been told to go."""
        return self.places is not None and is_leaving(self.places, len(self.actors))

    def close(self) -> None:
        """Kills the ranks and gives their place back."""
        for actor in self.actors:
            ray.kill(actor)
        if self.group is not None:
            remove_placement_group(self.group)

    def _parcels(self, which: str, circle: Circle | None = None) -> tuple[tuple[ray.ObjectRef, ...], str]:
        """A call a bucket: each rank has its part of one bucket in hand at a time. Also what failed in
        ``circle``."""

        def call(index: int, circle: Circle | None) -> list[list[ray.ObjectRef]]:
            return [actor.parcel.options(num_returns=2).remote(which, index, circle) for actor in self.actors]

        calls = [call(index, circle) for index in range(self.standing.buckets)]
        began, told, failure = time.monotonic(), False, ""
        for index in range(len(calls)):
            while (said := self._stored([done for _, done in calls[index]])) is None:
                waited = time.monotonic() - began
                if not told:
                    self.note(
                        f"publishing: the object store is full; it is tried again for {self.deadline_s:g} s"
                    )
                    told = True
                if waited > self.deadline_s:
                    raise StoreFull(f"learner rank 0 has no room for the {which}'s weights", waited)
                time.sleep(NO_ROOM_PAUSE_S)
                calls[index] = call(index, None)  # the circle has it already
            failure = said or failure
        return tuple(call[0][0] for call in calls), failure

    def _stored(self, refs: Sequence[ray.ObjectRef]) -> str | None:
        """What the first rank says of its circle; None if the object store had no room for its parcel."""
        try:
            said: str = self._of_first(refs, "parcel", self.patience)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, STORE_FULL):
                return None
            raise
        return said

    def _all(self, method: str, *arguments: Any) -> Any:
        """What the first rank returns, when all have."""
        return self._of_first([getattr(actor, method).remote(*arguments) for actor in self.actors], method)

    def _of_first(
        self, refs: Sequence[ray.ObjectRef], method: str, meanwhile: Callable[[], object] = lambda: None
    ) -> Any:
        end = time.monotonic() + self.deadline_s
        waiting = list(refs)
        while waiting:
            left = max(0.0, end - time.monotonic())
            done, waiting = ray.wait(waiting, num_returns=1, timeout=min(POLL_S, left), fetch_local=False)
            if not done and left:
                meanwhile()
                continue
            if not done:
                ranks = ", ".join(str(refs.index(ref)) for ref in waiting)
                raise LearnerLost(
                    f"learner rank {ranks} did not finish {method!r} within {self.deadline_s:g} s "
                    f"(cluster.deadline_s)"
                )
            check(done[0], refs, method, self.deadline_s)
        return ray.get(refs[0], timeout=self.deadline_s)
