"""What stands for the learner, the storage of checkpoints, the run folder and the pools, in a simulation."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from simulated_ray import Ref, task_error
from simulated_world import Violation, World

from actors.failures import LearnerLost, ObjectsLost, StoreFull
from actors.policy import PolicyRef, Weights
from actors.pool import Pool
from actors.watch import Watch
from d1ray.run.checkpoint import Found, Standing, resumable

POLL_S = 0.02


class SimulatedGang:
    """Stands for ``LearnerGang``: it takes time, calls ``meanwhile``, and checks what it learns from."""

    world: World  # set by ``simulated``

    def __init__(self, config, start, resume, incarnation, places, patience, placement_s, note):  # type: ignore[no-untyped-def]
        world = self.world
        self.config, self.patience, self.broadcasts = config, patience, SimpleNamespace(failures=0)
        self.standing = SimpleNamespace(unwritten="")
        self.step = self.resumed = resume.step if resume else 0
        self.amid = False  # a step: the weights belong to no checkpoint
        if incarnation <= world.incarnation:
            raise Violation(f"incarnation {incarnation} comes after {world.incarnation}")
        world.incarnation = incarnation
        if resume and world.checkpoints[resume.step][0] is not Standing.WHOLE:
            raise Violation("the run goes on from a checkpoint that is not whole")
        world.learned = dict(world.checkpoints[resume.step][2]) if resume else {}
        self._wait(5.0)

    def _wait(self, seconds: float, meanwhile: Callable[[], Any] = lambda: None) -> None:
        world = self.world
        end = world.ray.now + seconds
        fails = world.faults.learner and world.happened["learner"] < 12
        lost_at = world.ray.now + world.random.expovariate(1 / world.faults.learner) if fails else 1e9  # type: ignore[operator]
        while world.ray.now < end:
            world.ray.sleep(POLL_S)
            self.patience()
            meanwhile()
            if world.ray.now >= lost_at:
                world.happened["learner"] += 1
                raise LearnerLost("learner rank 0 died")

    def publish(self, generators: Pool) -> PolicyRef:
        self._wait(0.5)
        if self.world.random.random() < self.world.faults.full_publish:
            raise StoreFull("learner rank 0 has no room", 60.0)
        return PolicyRef(self.world.incarnation, Weights(self.step))

    def learn(
        self, tables: list[Ref], step: int, rollouts: Path, meanwhile: Callable[[], None]
    ) -> dict[str, float]:
        world, rl = self.world, self.config.rl
        if step != self.step:
            raise Violation(f"step {step + 1} is learned after step {self.step}")
        if any(table is None or table.value is None for table in tables):
            raise task_error(ObjectsLost("rollouts are lost"))
        groups = []
        policy = (world.incarnation, max(self.resumed, step - rl.staleness))
        for group, *generated_by in (table.value for table in tables):
            if tuple(generated_by) != policy:
                raise Violation(f"step {step + 1} learns from policy {generated_by}, not {policy}")
            groups.append(group)
        due = range(step * rl.prompts_per_step, (step + 1) * rl.prompts_per_step)
        if groups != [group for group in due if group not in world.dropped]:
            raise Violation(f"step {step + 1} learns from the groups {groups}")
        self.amid = True
        self._wait(3.0, meanwhile)
        self.amid = False
        self.step += 1
        world.learned[step] = tuple(groups)
        return {"empty_batches": 0.0, "tokens": 1.0}

    def save_checkpoint(self, root: Any, step: int, state: dict[str, Any], best: int) -> None:
        world = self.world
        damaged = world.random.random() < world.faults.damaged
        standing = world.random.choice((Standing.DAMAGED, Standing.UNFINISHED)) if damaged else Standing.WHOLE
        if self.amid or step != self.step or len(world.learned) != step:
            raise Violation(f"a checkpoint of step {step} holds what was learned in {len(world.learned)}")
        world.checkpoints[step] = (standing, state, dict(world.learned))

    def finish_checkpoint(self) -> None:
        self.world.ray._run(lambda: False, 0.1)

    def write_model(self, saved: Any, folder: Path) -> None:
        pass

    def is_leaving(self) -> bool:
        return self.world.random.random() < 0.05

    def close(self) -> None:
        self.world.watched = None


class SimulatedStorage:
    """Stands for ``d1ray.run.checkpoint`` where the driver asks which checkpoint counts."""

    def __init__(self, world: World):
        self.world = world

    def survey(self) -> list[Found]:
        found = self.world.checkpoints.items()
        return [Found(step, SimpleNamespace(step=step), standing) for step, (standing, *_) in found]  # type: ignore[arg-type]

    def latest(self, root: Any) -> Any:
        return next((found.folder for found in resumable(self.survey())), None)

    def newest_step(self, root: Any) -> int:
        return max((found.step for found in resumable(self.survey())), default=0)

    def of_step(self, root: Any, step: int) -> Any:
        whole = {found.step: found.folder for found in resumable(self.survey())}
        return whole.get(step) or self.latest(root)

    def load_state(self, folder: Any) -> dict[str, Any]:
        return dict(self.world.checkpoints[folder.step][1])

    def step_of(self, folder: Any) -> int:
        return int(folder.step)


class SimulatedFolder:
    """Stands for the run folder."""

    path = saved_path = rollouts = models = metrics_path = Path("simulated")

    def __init__(self, world: World):
        self.world, self.rows, self.saved = world, [], 0

    def truncate_metrics(self, stage: str, after_step: int) -> None:
        self.rows = [row for row in self.rows if row["step"] <= after_step]
        at = self.world.dropped_at
        self.world.dropped_at = {group: step for group, step in at.items() if step <= after_step}

    def fence(self) -> None:
        pass

    def check(self) -> None:
        pass

    def thin_rollouts(self, newest: int, keep: int) -> None:
        pass

    def set_rollouts_aside(self, after_step: int) -> None:
        pass

    def saved_step(self, stage: str) -> int:
        return 0  # a damaged first checkpoint may be all there is: then the run begins again

    def note_saved(self, stage: str, step: int) -> None:
        self.saved = step

    def note_dropped(self, row: dict[str, Any]) -> None:
        world = self.world
        failed_at = world.device_failed_at[row["group_id"]]
        if "CUDA" in row["reason"] and len(failed_at) == 1 < world.config.cluster.generators:
            raise Violation(f"a group is dropped for a device's sake: {row}")
        world.dropped_at[row["group_id"]] = row["step"]

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


class SimulatedPools:
    """Real pools of simulated actors."""

    places = None

    def __init__(self, world: World):
        c, both = world.config.cluster, Watch()
        self.generators = Pool(lambda place: world.actor("generator", place), c.generators, both, "generator")
        self.scorers = Pool(lambda place: world.actor("scorer", place), c.scorers, both, "scorer")

    def rest(self) -> None:
        pass

    def close(self) -> None:
        self.generators.close()
        self.scorers.close()
