"""A run of diffu-GRPO whose driver is real and whose cluster is simulated, with faults from a seed.

Real are the main loop, its recovery, the buffer, the pools, the retries and the choice of checkpoints;
simulated are Ray, the learner, the storage of checkpoints and time. What must hold is checked as it goes.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from simulated_parts import SimulatedFolder, SimulatedGang, SimulatedPools, SimulatedStorage
from simulated_ray import SimulatedRay
from simulated_world import Faults, Violation, World, config_of

from actors import buffer, overdue, pool, watch
from d1ray.config.errors import RunFailed
from d1ray.programs import evaluate, train, training
from d1ray.rl.rollout import Prompt
from d1ray.run.interrupt import Interrupted, Patience
from d1ray.tasks.task import Example

LONGEST_S = 20_000.0  # of simulated time, for a run of some steps: minutes without faults


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
