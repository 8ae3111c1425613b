"""Every metric's name, unit and meaning: of ``metrics.jsonl``, TensorBoard, trackers and Prometheus alike.

A metric ``reward/format`` is one of a family: Prometheus has ``d1ray_reward_component{component="format"}``.
All others are ``d1ray_<name>``, with the labels ``run`` and ``stage``; Ray puts ``ray_`` before.
"""

from dataclasses import dataclass
from typing import Literal

Unit = Literal["", "share", "s", "nats", "tokens", "tokens/s", "unix s", "bytes"]


@dataclass(frozen=True)
class Metric:
    """One number: logged once a step, or ``live``: only as a gauge, several times a minute."""

    name: str
    unit: Unit
    meaning: str
    live: bool = False


METRICS = (
    Metric("reward", "", "mean reward of the step's completions"),
    Metric("reward/COMPONENT", "", "mean of one component of the reward"),
    Metric("solved", "share", "of the step's completions that are right"),
    Metric("cell", "share", "mean partial credit, e.g. Sudoku cells that are right"),
    Metric("format", "share", "of completions in the asked format"),
    Metric("validation_solved", "share", "of the validation examples, greedy"),
    Metric("validation_examples", "", "how many they are"),
    Metric("loss", "", "mean over the step's updates"),
    Metric("kl", "nats", "a token, or a completion in sequence losses: k3 or k2 to the reference"),
    Metric("clip_fraction", "share", "of tokens, completions or views whose ratio is clipped"),
    Metric("elbo", "nats", "mean estimate of log p(completion), in sequence losses"),
    Metric("elbo_per_token", "nats", "spg: the lower bound"),
    Metric("eubo_gap", "nats", "spg: upper minus lower bound, a token"),
    Metric("logp_raised", "nats", "wd1: of good completions"),
    Metric("logp_lowered", "nats", "wd1: of bad completions"),
    Metric("grad_norm", "", "before clipping, mean over updates"),
    Metric("learning_rate", "", "mean over updates"),
    Metric("updates", "", "inner updates that were applied"),
    Metric("nonfinite", "", "inner updates that were dropped: loss or gradient was not finite"),
    Metric("empty_batches", "", "1 if no update was made, because in each group all rewards were equal"),
    Metric("groups_with_advantage", "share", "of groups whose rewards differ"),
    Metric("logprob_gap", "nats", "mean |learner - generator| before the first update; 0 on-policy"),
    Metric("mismatch", "nats", "a token, between fast and exact decoding, where it was measured"),
    Metric("resampled", "", "groups that were decoded again, exactly"),
    Metric("policy_age", "", "mean versions between the policy that sampled and the one that learns"),
    Metric("reference_version", "", "version at which the reference was taken"),
    Metric("tokens", "tokens", "sampled in the step"),
    Metric("tokens_per_s", "tokens/s", "sampled (or, supervised, learned from) over the whole step's time"),
    Metric("forwards_per_token", "", "denoising passes a row takes for each token"),
    Metric("parse_failures", "", "completions without a readable answer"),
    Metric("score_timeouts", "", "checks that took too long, and scored 0"),
    Metric("score_crashes", "", "checks whose process died, and scored 0"),
    Metric("dropped_groups", "", "groups that were given up after failing by themselves"),
    Metric("reissued_calls", "", "calls made again because an actor died, since the learner was built"),
    Metric("fetched_parcels", "", "buckets of weights that generators took from the object store"),
    Metric("sampling_parts", "", "most parts that a generator sampled a group in, for want of memory"),
    Metric("broadcast_failures", "", "broadcasts of weights that failed, since the learner was built"),
    Metric("seconds_load", "s", "of generators, loading weights; actor-seconds, as all up to score"),
    Metric("seconds_generate", "s", "of generators, sampling"),
    Metric("seconds_logprob", "s", "of generators, old and reference log-probabilities"),
    Metric("seconds_score", "s", "of scorers"),
    Metric("seconds_learn", "s", "of the learner"),
    Metric("seconds_publish", "s", "until new weights are in the object store"),
    Metric("seconds_step", "s", "of the whole step, without validation"),
    Metric("seconds_validate", "s", "of the validation after the step"),
    Metric("started_step", "unix s", "when the step began"),
    Metric("started_learn", "unix s", "when its learning began"),
    Metric("started_publish", "unix s", "when its publishing began"),
    Metric("started_validate", "unix s", "when its validation began"),
    Metric("validation_loss", "", "SFT: of held-out demonstrations"),
    Metric("phase", "", "number of a supervised phase"),
    Metric("step", "", "steps that are complete"),
    Metric("steps", "", "steps that there are in all", live=True),
    Metric("last_step_time", "unix s", "when the newest step was logged", live=True),
    Metric("slots", "", "groups under way at most: (staleness + 1) x prompts_per_step", live=True),
    Metric("slots_taken", "", "of them, started and not yet learned from", live=True),
    Metric("groups_waiting", "", "started, but no generator is free", live=True),
    Metric("groups_running", "", "being sampled or scored", live=True),
    Metric("groups_ready", "", "scored, waiting for their step", live=True),
    Metric("generators_up", "", "generators that answer", live=True),
    Metric("generators", "", "generators asked for, joining ones included", live=True),
    Metric("scorers_up", "", "scorers that answer", live=True),
    Metric("actors_killed", "", "actors killed because they did not answer in time", live=True),
    Metric("learner_restarts", "", "times the learner was rebuilt in this call", live=True),
)
FAMILY = "reward/"


def gauge_of(name: str) -> tuple[str, str]:
    """A metric's Prometheus name, without Ray's prefix, and the component of a family's ("" for others)."""
    if name.startswith(FAMILY):
        return "d1ray_reward_component", name.removeprefix(FAMILY)
    return f"d1ray_{name}", ""


def table() -> str:
    """The metrics as a Markdown table."""
    lines = ["| metric | unit | meaning | Prometheus |", "|---|---|---|---|"]
    for metric in METRICS:
        gauge, component = gauge_of(metric.name)
        label = '{component="COMPONENT"}' if component else ""
        name = f"{metric.name} (live)" if metric.live else metric.name
        lines.append(f"| `{name}` | {metric.unit} | {metric.meaning} | `ray_{gauge}{label}` |")
    return "\n".join(lines) + "\n"
