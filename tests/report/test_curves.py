"""Curves and their bands, against intervals worked out by hand."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from d1ray.report.curves import OF_BINS, OF_MEANS, OF_SHARES, OF_VALIDATION, curves
from d1ray.report.report import report
from d1ray.report.runs import Run, read_runs
from d1ray.report.statistics import ANY_SIGN, mean_band, share_band, step_statistics
from d1ray.run.history import Series

MakeRun = Callable[..., Path]

# Wilson's interval with z = 1.96: (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n)
HALF_OF_3 = (0.125331, 0.874669)
HALF_OF_12 = (0.253782, 0.746218)
NONE_OF_12 = (0.0, 0.242501)
QUARTER_OF_64 = (0.160148, 0.368165)


def drawn(*runs: Run) -> dict[str, dict[str, Any]]:
    return {curve["key"]: curve for curve in curves(runs, [list(step_statistics(run)) for run in runs])}


def band(curve: dict[str, Any], place: int = 0, run: int = 0) -> tuple[float, float]:
    points = curve["runs"][run]
    return points["low"][place], points["high"][place]


def near(bounds: Sequence[float]) -> Any:
    return pytest.approx(bounds, abs=1e-5)


def test_groups_that_vary_no_more_than_chance_count_every_completion() -> None:
    assert share_band([0.5, 0.5, 0.5], completions=12) == near(HALF_OF_12)


def test_groups_whose_completions_are_all_alike_count_as_one_each() -> None:
    # Means 0, 0, 1, 1 of 4 groups: m(1 - m) / (s² / n) = 0.25 / (1/3 / 4) = 3, raised to the 4 groups.
    low, high = share_band([0, 0, 1, 1], completions=48)
    assert (low, high) == near((0.150036, 0.849964))  # Wilson's of 2 of 4


def test_a_share_of_none_counts_every_completion() -> None:
    assert share_band([0.0, 0.0, 0.0], completions=12) == near(NONE_OF_12)
    low, high = share_band([1.0, 1.0, 1.0], completions=12)
    assert (1 - high, 1 - low) == near(NONE_OF_12)


def test_a_mean_has_the_standard_error_of_its_groups() -> None:
    # s = 1 about the mean 2, n = 3: 2 ± 1.96 / sqrt(3)
    assert mean_band([1.0, 2.0, 3.0]) == near((2 - 1.131607, 2 + 1.131607))
    assert mean_band([1.0]) is None


def test_the_share_solved_has_wilsons_band_by_group(make_run: MakeRun) -> None:
    solved = drawn(*read_runs([make_run(steps=2)]))["solved"]
    assert solved["runs"][0]["steps"] == [1, 2] and solved["runs"][0]["values"] == [0.5, 0.5]
    assert band(solved) == near(HALF_OF_12)
    assert solved["band"] == OF_SHARES


def test_without_completions_the_band_is_binomial_by_the_configured_number(make_run: MakeRun) -> None:
    folder = make_run(steps=2)
    for file in (folder / "rollouts").iterdir():
        file.unlink()
    curve = drawn(*read_runs([folder]))
    assert band(curve["solved"]) == near(HALF_OF_12)  # 3 prompts x 4
    assert "low" not in curve["reward"]["runs"][0] and curve["reward"]["band"] == ""


def test_dropped_groups_are_not_counted(make_run: MakeRun) -> None:
    row = {"stage": "rl", "step": 1, "solved": 0.5, "dropped_groups": 2}
    folder = make_run(steps=1, groups=3, size=3, rows=[row])
    (folder / "rollouts" / "step-00001.parquet").unlink()
    assert band(drawn(*read_runs([folder]))["solved"]) == near(HALF_OF_3)


def test_validation_has_wilsons_band_of_its_examples(make_run: MakeRun) -> None:
    validation = drawn(*read_runs([make_run()]))["validation_solved"]
    assert band(validation) == near(QUARTER_OF_64) and validation["band"] == OF_VALIDATION


def test_the_reward_and_its_components_have_bands_over_prompts(make_run: MakeRun) -> None:
    # All right in the first group, none in the others: rewards 1, .25, .25, so s = .75 / sqrt(3).
    folder = make_run(steps=1, right=lambda step, group, rollout: group == 0)
    curve = drawn(*read_runs([folder]))
    half = 1.96 * 0.75 / 3
    for key in ("reward", "reward/cells"):
        assert band(curve[key]) == near((0.5 - half, 0.5 + half)), key
        assert curve[key]["band"] == OF_MEANS


def test_numbers_that_no_interval_is_of_have_no_band(make_run: MakeRun) -> None:
    folder = make_run(steps=1)
    file = folder / "rollouts" / "step-00001.parquet"
    table = pq.read_table(file)
    for name, value in (("partial", 1.5), ("reward", math.nan)):
        place = table.schema.get_field_index(name)
        column = pa.array([value] * table.num_rows, pa.float32())
        table = table.set_column(place, table.schema.field(place), column)
    pq.write_table(table, file)
    curve = drawn(*read_runs([folder]))
    assert "low" not in curve["cell"]["runs"][0] and "low" not in curve["reward"]["runs"][0]
    assert report([folder]).exists()


def test_a_metric_that_is_no_mean_of_completions_has_no_band(make_run: MakeRun) -> None:
    curve = drawn(*read_runs([make_run()]))
    for key in ("kl", "grad_norm", "tokens_per_s", "policy_age"):
        assert "low" not in curve[key]["runs"][0] and curve[key]["band"] == "", key


def test_a_run_that_did_not_record_a_metric_has_no_curve_beside_one_that_did(make_run: MakeRun) -> None:
    rows = [
        {"stage": "rl", "step": 1, "reward": 0.5, "elbo": -3.0},
        {"stage": "rl", "step": 2, "reward": None},
    ]
    other = make_run("other", rows=rows)
    curve = drawn(*read_runs([make_run("first"), other]))
    assert curve["kl"]["runs"][1] is None
    assert curve["reward"]["runs"][1]["steps"] == [1]  # null is no value
    assert curve["elbo"]["section"] == "Others" and curve["elbo"]["runs"][0] is None


def test_the_losses_of_supervised_stages_are_curves_of_their_own(make_run: MakeRun) -> None:
    rows = [
        {"stage": "sft", "step": 1, "loss": 2.0},
        {"stage": "sft", "step": 2, "loss": 1.0, "validation_loss": 3},
    ]
    curve = drawn(*read_runs([make_run(rows=rows)]))
    assert curve["sft/loss"]["runs"][0] == {"steps": [1, 2], "values": [2.0, 1.0]}
    assert curve["sft/validation_loss"]["runs"][0]["values"] == [3.0]
    assert curve["sft/loss"]["shown"]  # something is


def test_a_long_curve_is_of_means_between_the_lowest_and_the_highest(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Series.__init__, "__defaults__", (3,))
    rows = [{"stage": "rl", "step": s, "kl": float(s), "validation_solved": 0.5} for s in range(1, 10)]
    curve = drawn(*read_runs([make_run(rows=rows)]))
    # 4 steps a point: 1 to 3, 4 to 7, 8 and 9.
    assert curve["kl"]["runs"][0] == {
        "steps": [2, 5, 8],
        "values": [2.0, 5.5, 8.5],
        "low": [1.0, 4.0, 8.0],
        "high": [3.0, 7.0, 9.0],
        "extremes": True,
    }
    assert curve["kl"]["band"] == curve["validation_solved"]["band"] == OF_BINS


def test_signs_are_counted_by_step_and_group(make_run: MakeRun) -> None:
    def text(step: int, group: int, rollout: int) -> str:
        return "Wait, it is 7. Actually 8." if group == 0 and rollout < step else "7"

    (run,) = read_runs([make_run(steps=2, text=text)])
    first, second = step_statistics(run)
    assert (first.signs["wait"], second.signs["wait"]) == ((1, 1), (2, 1))  # completion 0 is right, 1 is not
    assert first.signs[ANY_SIGN] == (1, 1) and first.signs["mistake"] == (0, 0)
    assert second.shares["actually"] == [0.5, 0.0, 0.0]
