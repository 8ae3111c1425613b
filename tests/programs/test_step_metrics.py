"""What a step's groups come to, on two groups worked out by hand."""

import pytest

from d1ray.programs.step_metrics import rollout_metrics


def group(**changes):
    counts = dict.fromkeys(("parse_failures", "timeouts", "crashes", "resampled", "fetched_parcels"), 1)
    seconds = {f"seconds_{phase}": 2.0 for phase in ("load", "generate", "logprob", "score")}
    return {
        "correct": [True, False],
        "partial": [1.0, 0.5],
        "formatted": [True, True],
        "components": {"cells": [1.0, 0.5], "length": [0.0, 0.1]},
        "tokens": 40,
        "forwards": 10,
        "policy_version": 3,
        "mismatch": None,
        "parts": 1,
        **counts,
        **seconds,
        **changes,
    }


def test_shares_are_of_all_completions_and_counts_and_seconds_are_sums():
    worse = group(correct=[False, False], partial=[0.0, 0.1], formatted=[False, True], tokens=60, forwards=40)
    metrics = rollout_metrics([group(), worse], version=4)
    assert metrics["solved"] == 1 / 4
    assert metrics["cell"] == pytest.approx(1.6 / 4)
    assert metrics["format"] == 3 / 4
    assert (metrics["tokens"], metrics["forwards_per_token"]) == (100, 0.5)
    assert metrics["policy_age"] == 1
    assert (metrics["score_timeouts"], metrics["score_crashes"], metrics["seconds_load"]) == (2, 2, 4.0)
    assert metrics["reward/cells"] == 3 / 4
    assert metrics["reward/length"] == pytest.approx(0.05)
    assert "mismatch" not in metrics and metrics["sampling_parts"] == 1


def test_the_mismatch_is_the_mean_of_the_groups_that_were_measured():
    assert rollout_metrics([group(), group(mismatch=0.2), group(mismatch=0.4)], 3)[
        "mismatch"
    ] == pytest.approx(0.3)
