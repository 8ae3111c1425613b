"""A simulated cluster's nodes and actors, the faults that happen to them, and what must hold meanwhile."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

from simulated_ray import Actor, Ref, SimulatedRay, Task, task_error

from actors.buffer import RolloutBuffer
from actors.failures import NoRoom, ObjectsLost
from d1ray.config.recipe import load_config
from d1ray.config.run import Config
from d1ray.run.checkpoint import Standing


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
    watched: RolloutBuffer | None = None  # of the learner at work
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
