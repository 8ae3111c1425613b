import json
import math

import pytest
from rich.console import Console, RenderableType

from d1ray.run.summary import Sample, as_rows, percent, samples, summarise, table, wilson


def shown(renderable: RenderableType, width: int = 100) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def verdicts(solved: int, wrong: int, tags: tuple[str, ...] = ()):
    return [(True, 1.0, True, tags)] * solved + [(False, 0.5, False, tags)] * wrong


def test_wilson_interval_of_eight_in_ten():
    # z²=3.8416: centre (0.8+0.19208)/1.38416=0.71674, spread 1.96·√(0.016+0.009604)/1.38416=0.22658
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_wilson_interval_has_a_width_at_the_extremes_and_stays_within_zero_and_one():
    # 10/10: the lower bound is 1 / (1 + z²/n) = 1 / 1.38416
    assert wilson(10, 10) == pytest.approx((0.72246, 1.0), abs=1e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.27754), abs=1e-5)
    for n in range(1, 200):
        assert wilson(0, n)[0] >= 0 and wilson(n, n)[1] <= 1


def test_wilson_interval_of_no_trials_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_interval_of_impossible_counts_is_refused():
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        wilson(3, 2)


def test_summary_averages_all_verdicts_and_each_tag():
    result = summarise("rl", "sudoku", verdicts(2, 2) + verdicts(3, 1, ("new grid",)))
    assert (result.n, result.solved, result.cell, result.format) == (8, 5 / 8, 6.5 / 8, 5 / 8)
    assert result.ci95 == wilson(5, 8)
    assert result.by_tag == {"new grid": (4, 0.75, wilson(3, 4))}


def test_summary_of_no_verdicts_is_nan_and_the_whole_interval():
    result = summarise("base", "sudoku", [])
    assert math.isnan(result.solved) and math.isnan(result.cell) and math.isnan(result.format)
    assert result.ci95 == (0.0, 1.0)
    assert "-" in shown(table([result]))


def test_table_names_rl_after_what_it_started_from():
    base, sft, rl = (
        summarise(stage, "sudoku", verdicts(1, 1), "diffu-GRPO") for stage in ("base", "sft", "rl")
    )
    assert "SFT + diffu-GRPO" in shown(table([base, sft, rl]))
    without_sft = shown(table([base, rl]))
    assert "diffu-GRPO" in without_sft and "SFT" not in without_sft


def test_table_shows_percentages_interval_count_and_tags():
    text = shown(table([summarise("sft", "sudoku", verdicts(8, 2, ("new grid",)))]), width=80)
    row = next(line for line in text.splitlines() if "SFT" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "SFT",
        "90.0 %",
        "80.0 %",
        "49.0 - 94.3 %",
        "80.0 %",
        "10",
    ]
    assert "new grid" in text


def test_table_without_results_is_drawn():
    assert "No results" in shown(table([]))


def test_rows_hold_the_documented_keys_and_are_json():
    (row,) = as_rows([summarise("rl", "sudoku", verdicts(1, 1, ("new grid",)))])
    assert list(row)[:7] == ["stage", "task", "n", "cell", "solved", "format", "ci95"]
    assert json.loads(json.dumps(row))["tags"]["new grid"]["ci95"] == list(wilson(1, 2))


def test_percentages_have_one_decimal():
    assert percent(0.4567) == "45.7 %"


def test_samples_show_prompt_answer_and_both_completions_with_verdicts():
    text = shown(samples([Sample("12_4", "1234", "1244", "1234!", False, True)]))
    assert all(part in text for part in ("12_4", "1244", "wrong", "1234!", "correct"))
    assert text.index("wrong") < text.index("correct")


def test_samples_show_garbage_as_text():
    text = shown(samples([Sample("[red]p[/red]", "1", "\x1b[31m[/b]", "", False, False)]))
    assert "[red]p[/red]" in text and r"\x1b[31m[/b]" in text and "\x1b" not in text and "(empty)" in text


def test_samples_cut_endless_completions():
    assert "9200 more characters" in shown(samples([Sample("p", "1", "x" * 10_000, "y", False, False)]))
