"""`d1ray train`: reinforcement learning (d1, arXiv 2504.12216) as one loop over references.

The driver starts calls and holds references; it never touches a tensor. Weights travel as an
argument of every generate call. With ``staleness=0`` a step's groups are sampled by the policy that
the step then updates; with more, slots for later steps fill while the learner learns.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.buffer import Call, RolloutBuffer
from actors.failures import LearnerLost, NoRoom, ObjectsLost, RolloutError, StoreFull, one_line
from actors.gauges import Gauges
from actors.learner_gang import LearnerGang
from actors.placement import shared_places
from actors.policy import PolicyRef
from actors.pools import Pools
from d1ray.config.errors import ResourceError, RunFailed
from d1ray.config.rl import RLConfig
from d1ray.config.run import Config
from d1ray.config.sampling import SamplerConfig
from d1ray.models.tokenizer import load_tokenizer
from d1ray.programs.evaluate import Tokenizer, evaluate, prompt_of
from d1ray.rl.mismatch import exact_sampling
from d1ray.rl.rollout import Prompt, Request
from d1ray.run import checkpoint
from d1ray.run.checkpoint import Place
from d1ray.run.folder import RunFolder
from d1ray.run.interrupt import GivenUp, Interrupted, Patience
from d1ray.run.progress import Progress, Stage
from d1ray.tasks.source import Data


@dataclass
class State:
    """What the driver has to remember, saved with every checkpoint.

    ``step`` outer steps are complete, ``cursor`` prompts are consumed. ``best_step`` is the step
    with the most validation examples solved (the earliest of equals); its checkpoint is kept.
    ``exact_decoding`` is set once a step's mean gap between fast and exact decoding is above the limit.
    """

    step: int = 0
    saved_step: int = -1
    cursor: int = 0
    incarnation: int = 0
    best_step: int = -1
    best_solved: float = -1.0
    exact_decoding: bool = False


def reinforce(
    config: Config,
    start: Path,
    data: Data,
    validation: Sequence[Prompt],
    run: RunFolder,
    progress: Progress,
    interrupt: Callable[[], bool],
    gauges: Gauges | None = None,
) -> None:
    """Trains from the model folder ``start``; leaves the policy that validates best in ``models/rl``.

    ``gauges`` show live how full the buffer is.

    Raises:
        Interrupted: a signal came; a checkpoint was written and the same call continues from it.
        GivenUp: a signal came, and what was under way did not end within half of ``cluster.grace_s``; the
            same call continues from the newest checkpoint there was.
    """
    rl = config.rl
    assert rl is not None
    root = config.checkpoint_root("rl")
    tokenizer = load_tokenizer(start)
    patience = Patience(interrupt, config.cluster.grace_s / 2)
    incarnation = rebuilt_at = restarts = rebuilds = 0
    with ExitStack() as actors:
        places = actors.enter_context(shared_places(config.cluster, patience))
        pools = actors.enter_context(closing(Pools(config, start, places)))
        while True:
            resume = checkpoint.latest(root)
            state = State(**checkpoint.load_state(resume)["driver"]) if resume else State()
            incarnation = state.incarnation = max(state.incarnation, incarnation) + 1
            run.truncate_metrics("rl", state.step or -1)
            rebuilt_at = state.step
            slots = (rl.staleness + 1) * rl.prompts_per_step
            buffer = RolloutBuffer(
                pools.generators, pools.scorers, slots, config.cluster.deadline_s, note=progress.note
            )
            standing = partial(live_metrics, buffer, rebuilds)
            try:
                pools.rest()
                placement_s = config.cluster.deadline_s if rebuilds else config.cluster.placement_s
                gang = LearnerGang(
                    config, start, resume, incarnation, places, patience, placement_s, progress.note
                )
                with (
                    gauges.watching(standing) if gauges else nullcontext(),
                    closing(gang) as learner,
                    progress.stage(rl.algorithm.title, rl.steps, state.step) as stage,
                ):
                    try:
                        loop(
                            config,
                            rl,
                            tokenizer,
                            data,
                            validation,
                            state,
                            learner,
                            pools,
                            buffer,
                            run,
                            progress,
                            stage,
                            interrupt,
                            patience,
                        )
                        learner.finish_checkpoint()
                        best = checkpoint.folder_of(root, state.best_step) if state.best_step else None
                        learner.write_model(best, run.models / "rl")
                    except GivenUp:
                        raise  # the ranks are amid a step: their weights belong to no checkpoint
                    except Interrupted:
                        save(learner, root, state)
                        learner.finish_checkpoint()
                        raise
                return
            except GivenUp as error:
                raise GivenUp(
                    f"{error} (half of cluster.grace_s); the run goes on from step "
                    f"{checkpoint.newest_step(root)}"
                ) from error
            except ResourceError as error:
                if rebuilds:  # the request was right: once there was a place
                    raise RunFailed(str(error)) from error
                raise
            except LearnerLost as error:
                past = checkpoint.newest_step(root) > rebuilt_at
                restarts, rebuilds = 1 if past else restarts + 1, rebuilds + 1
                if restarts > config.cluster.learner_restarts:
                    raise
                progress.note(f"{error}; the learner starts again from its newest checkpoint")


def live_metrics(buffer: RolloutBuffer, rebuilds: int) -> dict[str, float]:
    """What changes between steps."""
    return {**buffer.standing(), "learner_restarts": rebuilds}


def save(learner: LearnerGang, root: Place, state: State) -> None:
    """Begins a checkpoint, unless that of this step is written or under way."""
    if state.saved_step != state.step:
        state.saved_step = state.step
        learner.save_checkpoint(root, state.step, {"driver": asdict(state)}, state.best_step)


def loop(
    config: Config,
    rl: RLConfig,
    tokenizer: Tokenizer,
    data: Data,
    validation: Sequence[Prompt],
    state: State,
    learner: LearnerGang,
    pools: Pools,
    buffer: RolloutBuffer,
    run: RunFolder,
    progress: Progress,
    stage: Stage,
    interrupt: Callable[[], bool],
    patience: Patience,
) -> None:
    """The main loop; ``state`` always describes the steps that the learner has completed.

    Raises:
        Interrupted: a signal came, and no step is under way.
        GivenUp: ``patience`` with a step or validation under way is over.
    """

    def waits() -> bool:
        buffer.tend()  # its calls share the pools with the validation's
        return patience()

    def validate() -> dict[str, float]:
        started_at, started = time.time(), time.perf_counter()
        verdicts = evaluate(pools, policy, validation, config, waits).verdicts
        solved = sum(correct for correct, *_ in verdicts) / len(verdicts)
        if solved > state.best_solved:
            state.best_step, state.best_solved = state.step, solved
        return {
            "validation_solved": solved,
            "validation_examples": len(verdicts),
            "started_validate": started_at,
            "seconds_validate": time.perf_counter() - started,
        }

    root = config.checkpoint_root("rl")
    next_prompt, end = state.cursor, rl.steps * rl.prompts_per_step
    policy = learner.publish(pools.generators)
    if state.step == 0:
        run.log({"stage": "rl", "step": 0, **validate()})
    while state.step < rl.steps:
        started_at, started = time.time(), time.perf_counter()
        while buffer.has_slot() and next_prompt < end:
            sampling = exact_sampling(rl.sampling) if state.exact_decoding else rl.sampling
            buffer.start(request(config, rl, sampling, tokenizer, data, next_prompt), policy)
            next_prompt += 1
        taken = buffer.take(rl.prompts_per_step, interrupt)
        groups = kept(taken, state, run, progress)
        metrics = rollout_metrics(groups, policy, buffer) | {"dropped_groups": len(taken) - len(groups)}
        if rl.mismatch.limit is not None and metrics.get("mismatch", 0) > rl.mismatch.limit:
            state.exact_decoding = True
            progress.note(
                f"step {state.step + 1}: {rl.sampling.decoding} decoding (cache {rl.sampling.cache}) is "
                f"{metrics['mismatch']:.3g} nats a token from exact decoding, above rl.mismatch.limit="
                f"{rl.mismatch.limit:g}; rollouts are decoded exactly from the next ones on"
            )
        rollouts = run.rollouts / f"step-{state.step + 1:05d}.parquet"
        metrics |= learn(learner, pools, buffer, groups, state.step, rollouts, interrupt)
        state.step += 1
        if metrics["empty_batches"]:
            progress.note(f"step {state.step}: no update, because in each group all rewards are equal")
        state.cursor += len(taken)
        publishing_at, publishing = time.time(), time.perf_counter()
        policy = learner.publish(pools.generators)
        buffer.release(taken)
        finished = time.perf_counter()
        metrics |= {"started_publish": publishing_at, "seconds_publish": finished - publishing}
        metrics |= {"started_step": started_at, "seconds_step": finished - started}
        metrics["broadcast_failures"] = learner.broadcasts.failures
        metrics["tokens_per_s"] = metrics["tokens"] / metrics["seconds_step"]
        if state.step % rl.validate_every == 0 or state.step == rl.steps:
            metrics |= validate()
        run.log({"stage": "rl", "step": state.step, **metrics})
        stage.update(state.step, metrics)
        if state.step in (state.best_step, rl.steps) or state.step % rl.checkpoint_every == 0:
            save(learner, root, state)


def kept(taken: list[Call], state: State, run: RunFolder, progress: Progress) -> list[Call]:
    """The groups that were not given up; those that were are recorded in ``dropped.jsonl``.

    Raises:
        RolloutError: none is left.
    """
    for call in taken:
        if call.dropped:
            group = call.request.prompts[0]
            progress.note(f"step {state.step + 1}: group {group.group_id} is dropped: it {call.dropped}")
            run.note_dropped(
                {"step": state.step + 1, "group_id": group.group_id, "example": group.example.key}
                | {"reason": call.dropped}
            )
    groups = [call for call in taken if not call.dropped]
    if not groups:
        raise RolloutError(f"all {len(taken)} groups of step {state.step + 1} failed; {taken[0].dropped}")
    return groups


def learn(
    learner: LearnerGang,
    pools: Pools,
    buffer: RolloutBuffer,
    groups: list[Call],
    step: int,
    rollouts: Path,
    interrupt: Callable[[], bool],
) -> dict[str, float]:
    """One learning step. Groups whose tables were lost with a node, or have no room at the learner's, are
    generated again, the same.

    Raises:
        RolloutError: the learner has not got them within the buffer's deadline.
    """
    began, again = time.monotonic(), False
    while True:
        pools.rest()
        try:
            return learner.learn([group.table for group in groups], step, rollouts, buffer.tend)
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, ObjectsLost | NoRoom):
                raise
            if not again:
                buffer.note(f"learning: {one_line(error)}; the rollouts are generated again")
            if (waited := time.monotonic() - began) > buffer.deadline_s:
                if isinstance(error.cause, NoRoom):
                    raise StoreFull("the learner", waited) from error
                raise RolloutError(f"{one_line(error)}, again and again for {waited:.0f} s") from error
        again = True
        buffer.again(groups)
        groups = buffer.take(len(groups), interrupt)
        for group in groups:
            if group.dropped:
                raise RolloutError(f"{group.name}, generated again, {group.dropped}")


def request(
    config: Config, rl: RLConfig, sampling: SamplerConfig, tokenizer: Tokenizer, data: Data, index: int
) -> Request:
    """The call that rolls out training prompt ``index``; its group id is its index."""
    prompt = prompt_of(tokenizer, data.train(index), index, config.data.max_prompt_length)
    return Request((prompt,), rl.group_size, sampling, config.seed, likelihoods=rl)


def rollout_metrics(groups: list[Call], policy: PolicyRef, buffer: RolloutBuffer) -> dict[str, Any]:
    """Means and sums over a step's groups; seconds are actor-seconds."""
    meta = [group.metadata for group in groups]
    completions = [
        (c, p, f) for m in meta for c, p, f in zip(m["correct"], m["partial"], m["formatted"], strict=True)
    ]
    n, tokens = len(completions), sum(m["tokens"] for m in meta)
    seconds = {
        f"seconds_{k}": sum(m[f"seconds_{k}"] for m in meta) for k in ("load", "generate", "logprob", "score")
    }
    gaps = [m["mismatch"] for m in meta if m["mismatch"] is not None]
    for name in meta[0]["components"]:
        rewards = [value for m in meta for value in m["components"][name]]
        seconds[f"reward/{name}"] = sum(rewards) / n
    if gaps:
        seconds["mismatch"] = sum(gaps) / len(gaps)
    return {
        "solved": sum(c for c, _, _ in completions) / n,
        "cell": sum(p for _, p, _ in completions) / n,
        "format": sum(f for _, _, f in completions) / n,
        "tokens": tokens,
        "forwards_per_token": sum(m["forwards"] for m in meta) / tokens,
        "policy_age": sum(policy.version - m["policy_version"] for m in meta) / len(meta),
        "parse_failures": sum(m["parse_failures"] for m in meta),
        "score_timeouts": sum(m["timeouts"] for m in meta),
        "score_crashes": sum(m["crashes"] for m in meta),
        "resampled": sum(m["resampled"] for m in meta),
        "fetched_parcels": sum(m["fetched_parcels"] for m in meta),
        "reissued_calls": buffer.reissued,
    } | seconds
