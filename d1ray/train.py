"""`d1ray train`: diffu-GRPO (d1, arXiv 2504.12216) as one loop over references.

The driver starts calls and holds references; it never touches a tensor. Weights travel as an
argument of every generate call. With ``staleness=0`` a step's groups are sampled by the policy that
the step then updates; with more, slots for later steps fill while the learner learns.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.buffer import Call, RolloutBuffer
from actors.learner import Learner
from actors.policy import PolicyRef, Weights
from actors.pools import Pools
from d1ray import checkpoint
from d1ray.config import Config, RLConfig
from d1ray.evaluate import Tokenizer, evaluate, held_out_prompts, prompt_of
from d1ray.interrupt import Interrupt, Interrupted
from d1ray.models import load_tokenizer
from d1ray.progress import Progress
from d1ray.rl.rollout import Request
from d1ray.run_folder import RunFolder
from d1ray.tasks.source import Data


@dataclass
class State:
    """What the driver has to remember, saved with every checkpoint.

    ``step`` outer steps are complete, ``cursor`` prompts are consumed. ``best_step`` is the step
    with the most validation examples solved (the earliest of equals).
    """

    step: int = 0
    cursor: int = 0
    incarnation: int = 0
    best_step: int = -1
    best_solved: float = -1.0


def reinforce(
    config: Config, start: Path, data: Data, run: RunFolder, progress: Progress, interrupt: Interrupt
) -> None:
    """Trains from the model folder ``start``; leaves the policy that validates best in ``models/rl``.

    Raises:
        Interrupted: a signal came; a checkpoint was written and the same call continues from it.
    """
    rl, deadline_s = config.rl, config.cluster.deadline_s
    assert rl is not None
    tokenizer = load_tokenizer(start)
    root = run.checkpoints / "rl"
    resume = checkpoint.latest(root)
    state = State(**checkpoint.load_state(resume)["driver"]) if resume else State()
    state.incarnation += 1
    run.truncate_metrics("rl", state.step)
    learner = start_learner(config, start, resume)
    pools = Pools(config, start)
    buffer = RolloutBuffer(pools.generators, pools.scorers, (rl.staleness + 1) * rl.prompts_per_step)
    validation = data.examples("validation", config.evaluation.validation_examples)
    held_out = held_out_prompts(tokenizer, validation, config.data.max_prompt_length)
    publish = publisher(learner, state.incarnation, rl, deadline_s)

    def validate(policy: PolicyRef) -> dict[str, float]:
        solved = [v[0] for v in evaluate(pools, policy, held_out, config, interrupt).verdicts]
        share = sum(solved) / len(solved)
        if share > state.best_solved:
            state.best_step, state.best_solved = state.step, share
            ray.get(learner.save_model.remote(run.models / "rl"), timeout=deadline_s)
        return {"validation_solved": share}

    def save() -> None:
        ray.get(
            learner.save_checkpoint.remote(root, state.step, {"driver": asdict(state)}), timeout=deadline_s
        )

    try:
        with progress.stage("diffu-GRPO", rl.steps, state.step) as stage:
            policy = publish()
            if state.step == 0:
                run.log({"stage": "rl", "step": 0, **validate(policy)})
            started_prompts = state.cursor
            while state.step < rl.steps:
                started = time.perf_counter()
                while buffer.has_slot():
                    buffer.start(request(config, rl, tokenizer, data, started_prompts), policy)
                    started_prompts += 1
                groups = buffer.take(rl.prompts_per_step, deadline_s, interrupt)
                metrics = rollout_metrics(groups, policy, buffer)
                tables = [group.table for group in groups]
                rollouts = run.rollouts / f"step-{state.step + 1:05d}.parquet"
                metrics |= ray.get(learner.learn.remote(tables, state.step, rollouts), timeout=deadline_s)
                publishing = time.perf_counter()
                policy = publish()
                buffer.release(groups)
                state.step += 1
                state.cursor += len(groups)
                finished = time.perf_counter()
                metrics |= {"seconds_publish": finished - publishing, "seconds_step": finished - started}
                metrics["tokens_per_s"] = metrics["tokens"] / metrics["seconds_step"]
                if state.step % rl.validate_every == 0 or state.step == rl.steps:
                    metrics |= validate(policy)
                if state.step % rl.checkpoint_every == 0 or state.step == rl.steps:
                    save()
                run.log({"stage": "rl", "step": state.step, **metrics})
                stage.update(state.step, metrics)
    except KeyboardInterrupt:
        save()
        raise Interrupted from None
    finally:
        pools.close()
        ray.kill(learner)


def start_learner(config: Config, start: Path, resume: Path | None) -> ActorHandle:
    """The learner actor, from a model folder or a checkpoint."""
    c = config.cluster
    options = ray.remote(Learner).options(num_cpus=c.learner_cpus, num_gpus=c.learner_gpus)
    return options.remote(start, resume, config.rl, config.seed, c.learner_threads, c.deadline_s)


def request(config: Config, rl: RLConfig, tokenizer: Tokenizer, data: Data, index: int) -> Request:
    """The call that rolls out training prompt ``index``; its group id is its index."""
    prompt = prompt_of(tokenizer, data.train(index), index, config.data.max_prompt_length)
    return Request((prompt,), rl.group_size, rl.sampling, config.seed, likelihoods=rl)


def publisher(
    learner: ActorHandle, incarnation: int, rl: RLConfig, deadline_s: float
) -> Callable[[], PolicyRef]:
    """Returns ``publish()``: the learner's current weights as a PolicyRef whose buckets the driver owns.

    The reference is published again only when it has moved.
    """
    returns = 1 + ray.get(learner.bucket_count.remote(), timeout=deadline_s)
    reference: Weights | None = None

    def publish() -> PolicyRef:
        nonlocal reference
        version, *buckets = learner.publish.options(num_returns=returns).remote()
        policy = Weights(ray.get(version, timeout=deadline_s), tuple(buckets))
        if rl.beta > 0:
            moved_to = ray.get(learner.reference_version_now.remote(), timeout=deadline_s)
            if reference is None or reference.version != moved_to:
                version, *buckets = learner.publish_reference.options(num_returns=returns).remote()
                reference = Weights(ray.get(version, timeout=deadline_s), tuple(buckets))
        return PolicyRef(incarnation, policy, reference)

    return publish


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
    return {
        "solved": sum(c for c, _, _ in completions) / n,
        "cell": sum(p for _, p, _ in completions) / n,
        "format": sum(f for _, _, f in completions) / n,
        "tokens": tokens,
        "forwards_per_token": sum(m["forwards"] for m in meta) / tokens,
        "policy_age": sum(policy.version - m["policy_version"] for m in meta) / len(meta),
        "reissued_calls": buffer.reissued,
    } | seconds
