"""A run of diffu-GRPO whose driver is real and whose cluster is simulated, with faults from a seed.

Real are the main loop, its recovery, the buffer, the pools, the retries and the choice of checkpoints;
simulated are Ray, the learner, the storage of checkpoints and time. What must hold is checked as it goes.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from simulated_ray import Actor, Ref, SimulatedRay, Task, task_error

from actors import buffer, overdue, pool, watch
from actors.failures import LearnerLost, NoRoom, ObjectsLost, StoreFull
from actors.policy import PolicyRef, Weights
from actors.pool import Pool
from actors.watch import Watch
from d1ray.config.errors import RunFailed
from d1ray.config.recipe import load_config
from d1ray.config.run import Config
from d1ray.programs import evaluate, train, training
from d1ray.rl.rollout import Prompt
from d1ray.run.checkpoint import Found, Standing, resumable
from d1ray.run.interrupt import Interrupted, Patience
from d1ray.tasks.task import Example

LONGEST_S = 20_000.0  # of simulated time, for a run of some steps: minutes without faults
POLL_S = 0.02


class Violation(AssertionError):
    """What must never be."""


@dataclass
class Faults:
    """How often what happens: the mean time between two of a kind, in seconds; None for never."""

    kill: float | None = None
    hang: float | None = None
    node: float | None = None  # dies: all its actors, and what its store holds
    preempt: float | None = None
    cut_off: float | None = None  # a network partition
    slow: float | None = None  # a node, for a while
    full: float | None = None  # its store, for a while
    sticky: float | None = None  # a generator's device
    sick_node: int = -1  # whose every generator has a device that fails
    sick_place: int = -1  # the same of a place, wherever its actor is
    failing_place: int = -1  # whose generator fails every group by itself
    full_publish: float = 0.0  # share of publishings for which there is no room
    unstartable: float = 0.0  # share of starts that fail
    bad_group: int = 1000  # fails by itself, wherever it is; negative ones are of the validation
    learner: float | None = None
    lost_weights: float = 0.0  # share of generations that cannot get their weights
    damaged: float = 0.0  # share of checkpoints
    signal: float | None = None  # SIGTERM; the same command runs again

    @classmethod
    def drawn(cls, random: Random) -> "Faults":
        """Some of them, some often."""

        def some(often: float = 5.0, seldom: float = 200.0) -> float | None:
            return random.uniform(often, seldom) if random.random() < 0.35 else None

        return cls(
            *(some() for _ in range(8)),
            failing_place=0 if random.random() < 0.1 else -1,
            full_publish=0.05 if random.random() < 0.2 else 0.0,
            sick_node=0 if random.random() < 0.1 else -1,
            unstartable=0.3 if random.random() < 0.2 else 0.0,
            bad_group=random.randrange(-3, 8) if random.random() < 0.2 else 1000,
            learner=some(20.0, 300.0),
            lost_weights=0.05 if random.random() < 0.2 else 0.0,
            damaged=0.3 if random.random() < 0.3 else 0.0,
            signal=some(20.0, 300.0),
        )


@cache
def base_config() -> Config:
    return load_config(
        "sudoku-tiny", ["sft=null", "run_dir=simulated", "model.make=null", "model.path=simulated"]
    )


def config_of(random: Random, more: dict[str, int]) -> Config:
    base = base_config()
    assert base.rl is not None
    rl = base.rl.model_copy(
        update={
            "steps": random.randint(2, 6),
            "prompts_per_step": random.randint(2, 4),  # a step whose every group is bad ends a run
            "staleness": random.choice((0, 0, 1, 2)),
            "validate_every": random.randint(1, 4),
            "checkpoint_every": random.randint(1, 3),
            "keep_checkpoints": random.randint(1, 3),
        }
    )
    cluster = base.cluster.model_copy(
        update={
            "generators": random.randint(1, 4),
            "scorers": random.randint(1, 2),
            "deadline_s": 60.0,
            "learner_restarts": 100,
            **more,
        }
    )
    evaluation = base.evaluation.model_copy(update={"batch_size": random.choice((1, 2))})
    return base.model_copy(update={"rl": rl, "cluster": cluster, "evaluation": evaluation})


@dataclass
class World:
    """The cluster's nodes, what happens to them, and what has been learned and saved."""

    random: Random
    faults: Faults
    config: Config
    ray: SimulatedRay
    nodes: int = 3
    slow_until: dict[int, float] = field(default_factory=dict)
    full_until: dict[int, float] = field(default_factory=dict)
    tables: list[Ref] = field(default_factory=list)
    learned: dict[int, tuple[int, ...]] = field(
        default_factory=dict
    )  # groups by step, of the present history
    dropped_at: dict[int, int] = field(default_factory=dict)  # the step of each group that was given up
    checkpoints: dict[int, tuple[Standing, dict[str, Any], dict[int, tuple[int, ...]]]] = field(
        default_factory=dict
    )
    incarnation: int = 0
    signalled: bool = False
    happened: Counter[str] = field(default_factory=Counter)
    device_failed_at: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    watched: buffer.RolloutBuffer | None = None  # of the learner at work
    ended: list[str] = field(default_factory=list)  # commands that did not get to the end, and why

    @property
    def dropped(self) -> set[int]:
        return set(self.dropped_at)

    # What happens

    def begin(self) -> None:
        f = self.faults
        for every, what in (
            (f.kill, self.kill),
            (f.hang, self.hang),
            (f.node, self.lose_node),
            (f.preempt, self.preempt),
            (f.cut_off, self.cut_off),
            (f.slow, self.slow),
            (f.full, self.fill),
            (f.sticky, self.break_device),
            (f.signal, self.signal),
        ):
            if every is not None:
                self._again_and_again(every, what)

    def _again_and_again(self, every: float, what: Callable[[], None]) -> None:
        def happen() -> None:
            self.happened[what.__name__] += 1
            what()
            if self.happened[what.__name__] < 12:  # faults end some day, or no run would
                self.ray.after(self.random.expovariate(1 / every), happen)

        self.ray.after(self.random.expovariate(1 / every), happen)

    def _some(self) -> Actor | None:
        alive = [actor for actor in self.ray.actors if not actor.gone]
        return self.random.choice(alive) if alive else None

    def kill(self) -> None:
        if actor := self._some():
            actor.die()

    def preempt(self) -> None:
        if actor := self._some():
            actor.die(preempted=True)

    def hang(self) -> None:
        if actor := self._some():
            actor.process.hangs = True

    def lose_node(self) -> None:
        node = self.random.randrange(self.nodes)
        for actor in self.ray.actors:
            if actor.node == node:
                actor.die()
        for table in self.tables:
            if table.node == node:
                table.value = None  # lost
        self.tables = [table for table in self.tables if table.value is not None]

    def cut_off(self) -> None:
        if actor := self._some():
            actor.cut_off_until = self.ray.now + self.random.uniform(1, 90)

    def slow(self) -> None:
        self.slow_until[self.random.randrange(self.nodes)] = self.ray.now + self.random.uniform(10, 100)

    def fill(self) -> None:
        self.full_until[self.random.randrange(self.nodes)] = self.ray.now + self.random.uniform(1, 30)

    def break_device(self) -> None:
        generators = [a for a in self.ray.actors if a.kind == "generator" and not a.gone]
        if generators:
            self.random.choice(generators).process.sticky = True

    def signal(self) -> None:
        self.signalled = True

    # What actors do

    def actor(self, kind: str, place: int) -> Actor:
        return Actor(self.ray, kind, place, self._start, self._work)

    def _start(self, actor: Actor) -> None:
        actor.node = self.random.randrange(self.nodes)
        if self.random.random() < self.faults.unstartable and self.happened["unstartable"] < 20:
            self.happened["unstartable"] += 1
            raise OSError("no such mount")

    def _work(self, actor: Actor, task: Task) -> tuple[float, Any, Exception | None]:
        seconds = self.random.uniform(0.05, 2.0)
        if self.slow_until.get(actor.node, 0.0) > self.ray.now:
            seconds *= 20
        if self.full_until.get(actor.node, 0.0) > self.ray.now:
            return seconds, None, task_error(NoRoom("there is no room"))
        if task.method == "generate":
            return self._generate(actor, task, seconds)
        table, metadata = (ref.value for ref in task.arguments)
        self.tables.append(task.refs[0])
        return seconds, (table, metadata), None

    def _generate(self, actor: Actor, task: Task, seconds: float) -> tuple[float, Any, Exception | None]:
        request, policy = task.arguments
        group = request.prompts[0].group_id
        sick = actor.node == self.faults.sick_node or actor.place == self.faults.sick_place
        if actor.process.sticky or sick:
            self.device_failed_at[group].add(actor.place)
            return 0.01, None, task_error(RuntimeError("CUDA error: unspecified launch failure"))
        if group == self.faults.bad_group or (
            actor.place == self.faults.failing_place and self.config.cluster.generators > 1
        ):
            return seconds, None, task_error(ValueError("this group cannot be read"))
        if self.random.random() < self.faults.lost_weights and self.happened["lost weights"] < 10:
            self.happened["lost weights"] += 1
            return seconds, None, task_error(ObjectsLost("weights are lost"))
        table = (group, policy.incarnation, policy.version)
        metadata = {"incarnation": policy.incarnation, "policy_version": policy.version}
        n = len(request.prompts) * request.rollouts
        metadata |= {"correct": [True] * n, "partial": [1.0] * n, "formatted": [True] * n, "texts": ["1"] * n}
        return seconds, (table, metadata), None

    # What must hold

    def check(self) -> None:
        """Whenever the driver waits."""
        b = self.watched
        if b is None or b.trouble:
            return
        under_way = [call for call in b.started if not call.over]
        waiting, running = list(b.waiting), list(b.running.values())
        if Counter(map(id, under_way)) != Counter(map(id, waiting + running)):
            raise Violation("a group that is not over neither waits nor runs, or does both")
        if not 0 <= b.taken <= b.slots:
            raise Violation(f"{b.taken} of {b.slots} slots are taken")


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


@contextmanager
def simulated(world: World) -> Iterator[None]:
    """The driver's modules see the simulated Ray, time, learner and storage while the block runs."""
    storage = SimulatedStorage(world)

    class Gang(SimulatedGang):
        pass

    def watched(*arguments: Any, **named: Any) -> buffer.RolloutBuffer:
        world.watched = buffer.RolloutBuffer(*arguments, **named)
        return world.watched

    Gang.world, world.ray.before_waiting = world, world.check
    changes: list[tuple[Any, str, Any]] = [
        *((module, "ray", world.ray) for module in (watch, pool, buffer, evaluate)),
        *((module, "time", world.ray) for module in (watch, pool, buffer, overdue, train, training)),
        (training, "LearnerGang", Gang),
        (training, "RolloutBuffer", watched),
        (training, "checkpoint", storage),
        (train, "checkpoint", storage),
        (training, "rollout_metrics", lambda groups, version: {"tokens": 1.0}),
        (
            training,
            "prompt_of",
            lambda tokenizer, example, group, limit: Prompt(group, (1,), example),
        ),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    for module, name, new in changes:
        setattr(module, name, new)
    try:
        yield
    finally:
        for module, name, old in before:
            setattr(module, name, old)


EXAMPLE = Example("simulated", "0", "?", {})


def run(seed: int, faults: Faults | None = None, **cluster: int) -> World:
    """A whole run; raises ``Violation`` or ``Stuck``, and whatever the driver should not raise.

    An end that says in one line why it cannot go on is an answer, too: the same command goes on from there.
    """
    random = Random(seed)
    config = config_of(random, cluster)
    world = World(random, faults or Faults.drawn(random), config, SimulatedRay(random, LONGEST_S))
    world.begin()
    folder, commands = SimulatedFolder(world), 0
    with simulated(world):
        while True:
            commands += 1
            if commands > 60:
                raise Violation("the command never ends well")
            world.signalled, world.incarnation = False, 0
            pools = SimulatedPools(world)
            try:
                train.reinforce(_job(world, folder, pools))
                break
            except (Interrupted, RunFailed) as ended:
                world.ended.append(f"{type(ended).__name__}: {ended}")
            finally:
                pools.close()
    _check_the_end(world, folder)
    return world


def _job(world: World, folder: SimulatedFolder, pools: SimulatedPools) -> Any:
    def interrupt() -> bool:
        return world.signalled

    progress = SimpleNamespace(
        note=lambda text: None,
        stage=lambda *_: nullcontext(SimpleNamespace(update=lambda step, metrics: None)),
    )
    return training.Job(
        world.config,
        Path("simulated"),
        None,  # type: ignore[arg-type]
        SimpleNamespace(train=lambda index: EXAMPLE),  # type: ignore[arg-type]
        [Prompt(-(i + 1), (1,), EXAMPLE) for i in range(3)],
        folder,  # type: ignore[arg-type]
        progress,  # type: ignore[arg-type]
        interrupt,
        Patience(interrupt, world.config.cluster.grace_s / 2, world.ray.monotonic),
        pools,  # type: ignore[arg-type]
    )


def _check_the_end(world: World, folder: SimulatedFolder) -> None:
    rl = world.config.rl
    assert rl is not None
    learned = [group for step in sorted(world.learned) for group in world.learned[step]]
    due = [group for group in range(rl.steps * rl.prompts_per_step) if group not in world.dropped]
    if sorted(world.learned) != list(range(rl.steps)) or learned != due:
        raise Violation(f"learned {world.learned}, without {sorted(world.dropped)}")
    if [row["step"] for row in folder.rows] != list(range(rl.steps + 1)):
        raise Violation(f"metrics of the steps {[row['step'] for row in folder.rows]}")
