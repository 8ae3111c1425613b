"""LearnerGang: the driver's side of the learner's ranks. It passes references and waits with a deadline."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.failures import ACTOR_LOST, STORE_FULL, LearnerLost, StoreFull
from actors.learner import Learner, Standing
from actors.policy import PolicyRef, Weights
from d1ray.checkpoint import Place
from d1ray.config import Config
from d1ray.errors import ResourceError

POLL_S = 0.02
NO_ROOM_PAUSE_S = 0.5  # between tries to hand over weights
DEATH_NOTICE_S = 15  # after a rank's error, to learn whether another's death was its cause


class LearnerGang:
    """Starts the learner's ranks and kills them on ``close``. They live and die together.

    Args:
        start: the model folder RL starts from.
        resume: a complete checkpoint to continue from, or None.
        incarnation: marks the policies published from here.
        placement_s: longest wait for a place for all ranks.
        note: is told what a user should know.

    Every method calls all ranks and waits for them, at most ``cluster.deadline_s``.

    Raises:
        LearnerLost: a rank died, or did not answer in time; the gang is of no further use.
        ResourceError: there is no room for all ranks.
    """

    def __init__(
        self,
        config: Config,
        start: Path,
        resume: Place | None,
        incarnation: int,
        placement_s: float,
        note: Callable[[str], None] = lambda text: None,
    ):
        self.note = note
        c = config.cluster
        assert config.rl is not None
        self.needs_reference = config.rl.algorithm.needs_reference
        self.lora, self.incarnation, self.deadline_s = config.rl.lora, incarnation, c.deadline_s
        self.actors: list[Any] = []
        self.group: PlacementGroup | None = None
        self.policy: Weights | None = None
        self.reference: Weights | None = None
        try:
            if c.learner_cpus or c.learner_gpus or c.learner_resources:
                self.group = self._placed(config, placement_s)
            rank = ray.remote(Learner)
            for number in range(c.learners):
                options: dict[str, Any] = {
                    "num_cpus": c.learner_cpus,
                    "num_gpus": c.learner_gpus,
                    "resources": dict(c.learner_resources),
                }
                if self.group is not None:
                    options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self.group, number)
                self.actors.append(
                    rank.options(**options).remote(
                        start,
                        resume,
                        config.rl,
                        config.model.precision,
                        config.seed,
                        c.learner_threads,
                        c.deadline_s,
                        incarnation,
                        number,
                        c.learners,
                    )
                )
            meeting = self._of_first([self.actors[0].meeting_point.remote()], "meeting_point")
            self.standing: Standing = self._all("build", meeting)
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
        metrics, self.standing = self._of_first(refs, "learn", meanwhile)
        return metrics

    def publish(self) -> PolicyRef:
        """The current policy, its parcels owned by the driver; the reference again only when it has moved.

        Returns once the ranks have handed everything over: a parcel is then in the object store.

        Raises:
            StoreFull: there was no room for one for ``deadline_s``.
        """
        now = self.standing
        if self.policy is None or self.policy.version != now.version:
            self.policy = Weights(now.version, self._parcels("policy"), lora=self.lora)
        if self.needs_reference and (
            self.reference is None or self.reference.version != now.reference_version
        ):
            self.reference = Weights(now.reference_version, self._parcels("reference"), lora=self.lora)
        return PolicyRef(self.incarnation, self.policy, self.reference)

    def save_checkpoint(self, root: Place, step: int, state: dict[str, Any], best: int) -> None:
        """Begins a checkpoint with the driver's ``state``; it is written beside what comes next."""
        self._all("save_checkpoint", root, step, state, best)

    def finish_checkpoint(self) -> None:
        """Waits until the checkpoint that was begun last is written."""
        self._all("finish_checkpoint")

    def close(self) -> None:
        """Kills the ranks and gives their place back."""
        for actor in self.actors:
            ray.kill(actor)
        if self.group is not None:
            remove_placement_group(self.group)

    def _placed(self, config: Config, placement_s: float) -> PlacementGroup:
        """A place for every rank at once: a part of a gang would only hold what others need."""
        c = config.cluster
        bundle = {"CPU": c.learner_cpus, "GPU": c.learner_gpus, **c.learner_resources}
        bundle = {name: amount for name, amount in bundle.items() if amount}
        group = placement_group([bundle] * c.learners, strategy="PACK")
        if not group.wait(placement_s):
            remove_placement_group(group)
            free = {name: ray.available_resources().get(name, 0) for name in bundle}
            raise ResourceError(
                f"no place for {c.learners} x learner rank (cluster.learners) with {bundle} each within "
                f"{placement_s:g} s; free are {free}: add nodes, or wait until others' work has ended"
            )
        return group

    def _parcels(self, which: str) -> tuple[ray.ObjectRef, ...]:
        """A call a bucket: each rank has its part of one bucket in hand at a time."""

        def call(index: int) -> list[list[ray.ObjectRef]]:
            return [actor.parcel.options(num_returns=2).remote(which, index) for actor in self.actors]

        calls = [call(index) for index in range(self.standing.buckets)]
        began, told = time.monotonic(), False
        for index in range(len(calls)):
            while not self._stored([done for _, done in calls[index]]):
                waited = time.monotonic() - began
                if not told:
                    self.note(
                        f"publishing: the object store is full; it is tried again for {self.deadline_s:g} s"
                    )
                    told = True
                if waited > self.deadline_s:
                    raise StoreFull(f"learner rank 0 has no room for the {which}'s weights", waited)
                time.sleep(NO_ROOM_PAUSE_S)
                calls[index] = call(index)
        return tuple(call[0][0] for call in calls)

    def _stored(self, refs: Sequence[ray.ObjectRef]) -> bool:
        """Whether the object store had room for what a call returned."""
        try:
            self._of_first(refs, "parcel")
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, STORE_FULL):
                return False
            raise
        return True

    def _all(self, method: str, *arguments: Any) -> Any:
        """What the first rank returns, when all have."""
        return self._of_first([getattr(actor, method).remote(*arguments) for actor in self.actors], method)

    def _of_first(
        self, refs: Sequence[ray.ObjectRef], method: str, meanwhile: Callable[[], None] | None = None
    ) -> Any:
        end = time.monotonic() + self.deadline_s
        waiting = list(refs)
        while waiting:
            left = max(0.0, end - time.monotonic())
            done, waiting = ray.wait(
                waiting, num_returns=1, timeout=min(POLL_S, left) if meanwhile else left, fetch_local=False
            )
            if not done and meanwhile and left:
                meanwhile()
                continue
            if not done:
                ranks = ", ".join(str(refs.index(ref)) for ref in waiting)
                raise LearnerLost(
                    f"learner rank {ranks} did not finish {method!r} within {self.deadline_s:g} s "
                    f"(cluster.deadline_s)"
                )
            self._check(done[0], refs, method)
        return ray.get(refs[0], timeout=self.deadline_s)

    def _check(self, ref: ray.ObjectRef, refs: Sequence[ray.ObjectRef], method: str) -> None:
        """Raises what ``ref`` ended with, if it is an error: another rank's death may be behind it."""
        try:
            ray.get(ref, timeout=self.deadline_s)
        except ACTOR_LOST as error:
            said = str(error).strip().splitlines()[0]
            raise LearnerLost(f"learner rank {refs.index(ref)} died in {method!r}: {said}") from error
        except ray.exceptions.RayTaskError as error:
            ended, _ = ray.wait(list(refs), num_returns=len(refs), timeout=DEATH_NOTICE_S, fetch_local=False)
            if len(ended) < len(refs) or any(_died(other) for other in ended):
                raise LearnerLost(f"learner rank {refs.index(ref)} lost another in {method!r}") from error
            raise


def _died(ref: ray.ObjectRef) -> bool:
    try:
        ray.get(ref, timeout=1)
    except ACTOR_LOST:
        return True
    except Exception:
        return False
    return False
