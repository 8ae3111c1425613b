import math
from pathlib import Path

import matplotlib.image
import pytest

from d1ray.run.curves import draw_curves, smoothed
from d1ray.run.history import History
from d1ray.run.summary import summarise

RL_ROW = {"stage": "rl", "reward": 0.5, "kl": 0.01, "clip_fraction": 0.1, "validation_solved": 0.3}
SECONDS = {f"seconds_{phase}": 1.0 for phase in ("generate", "score", "logprob", "learn", "publish")}


def size(path: Path) -> tuple[int, int]:
    """Height and width in pixels: a PNG that cannot be read raises."""
    height, width, *_ = matplotlib.image.imread(path).shape
    return height, width


def test_a_whole_run_is_drawn_as_six_panels(tmp_path):
    metrics = [
        {"stage": stage, "step": step, "loss": 1 / step} for stage in ("pretrain", "sft") for step in (1, 2)
    ]
    metrics += [{**RL_ROW, **SECONDS, "step": step} for step in range(1, 9)]
    results = [summarise(stage, "sudoku", [(True, 1.0, True, ())]) for stage in ("base", "sft", "rl")]
    draw_curves(History(metrics), tmp_path / "all.png", results)
    draw_curves(History(metrics[:4]), tmp_path / "loss.png")
    (height, width), (panel_height, panel_width) = size(tmp_path / "all.png"), size(tmp_path / "loss.png")
    assert (height, width) == (2 * panel_height, 3 * panel_width)


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{}],
        [{"stage": "rl"}],
        [{"stage": "rl", "step": 1}],
        [{"stage": "rl", "step": 1, "reward": None, "kl": "high", "loss": math.nan}],
        [{"stage": "sft", "step": 1, "loss": -1.0}],
        [{"stage": "rl", "step": 1, "reward": 0.0, "kl": 0.0, "clip_fraction": 0.0, "seconds_learn": 0.0}],
        [{"stage": "rl", "step": 1, "clip_fraction": 0.5}],
        [{"stage": "rl", "step": 1, "kl": -0.5}],
        [{"stage": "rl", "step": 1, "reward": 1}, {"stage": "rl", "step": 1, "reward": 2}],
    ],
)
def test_short_empty_and_odd_metrics_still_give_a_picture(tmp_path, metrics):
    draw_curves(History(metrics), tmp_path / "curves.png", results=[summarise("base", "sudoku", [])])
    assert size(tmp_path / "curves.png") > (100, 100)
    assert [entry.name for entry in tmp_path.iterdir()] == ["curves.png"]


def test_smoothing_averages_the_last_values_only():
    assert smoothed([1, 2, 3, 6], window=3) == pytest.approx([1, 1.5, 2, 11 / 3])
    assert smoothed([], window=3) == []
