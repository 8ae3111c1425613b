"""What a step's groups come to: means and sums of the small metadata that the driver holds of each."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Metrics: TypeAlias = dict[str, float]
PHASES = ("load", "generate", "logprob", "score")


def rollout_metrics(groups: Sequence[Mapping[str, Any]], version: int) -> Metrics:
    """Means and sums over a step's groups, of which ``version`` is the newest policy; seconds are
    actor-seconds."""
    completions = [
        verdict for g in groups for verdict in zip(g["correct"], g["partial"], g["formatted"], strict=True)
    ]
    n, tokens = len(completions), sum(g["tokens"] for g in groups)
    gaps = [g["mismatch"] for g in groups if g["mismatch"] is not None]
    metrics = {
        "solved": sum(correct for correct, _, _ in completions) / n,
        "cell": sum(partial for _, partial, _ in completions) / n,
        "format": sum(formatted for _, _, formatted in completions) / n,
        "tokens": tokens,
        "forwards_per_token": sum(g["forwards"] for g in groups) / tokens,
        "policy_age": sum(version - g["policy_version"] for g in groups) / len(groups),
        "parse_failures": sum(g["parse_failures"] for g in groups),
        "score_timeouts": sum(g["timeouts"] for g in groups),
        "score_crashes": sum(g["crashes"] for g in groups),
        "resampled": sum(g["resampled"] for g in groups),
        "fetched_parcels": sum(g["fetched_parcels"] for g in groups),
        "sampling_parts": max(g["parts"] for g in groups),
    }
    metrics |= {f"seconds_{phase}": sum(g[f"seconds_{phase}"] for g in groups) for phase in PHASES}
    for name in groups[0]["components"]:
        metrics[f"reward/{name}"] = sum(value for g in groups for value in g["components"][name]) / n
    if gaps:
        metrics["mismatch"] = sum(gaps) / len(gaps)
    return metrics
