"""What an evaluation keeps, and the table it comes to."""

import pyarrow as pa
import pytest

from d1ray.config.errors import ConfigError
from d1ray.config.kinds import load_task
from d1ray.evaluation.folder import EvaluationFolder
from d1ray.evaluation.table import cell_of, markdown
from d1ray.rl import schema


def batch(correct):
    n = len(correct)
    values = {
        field.name: [{"int": 0, "float": 0.0, "double": 0.0}.get(str(field.type).rstrip("0123456789"))] * n
        for field in schema.SCORED
    }
    values |= {name: [[]] * n for name in ("prompt_ids", "completion_ids", "step_map", "sampler_logps")}
    values |= {name: [[]] * n for name in ("old_logps", "reference_logps", "components")}
    values |= {"correct": correct, "formatted": [True] * n, "partial": [0.5] * n, "forwards": [8] * n}
    values |= {name: ["x"] * n for name in ("task", "example", "text")}
    values |= {"failure": [""] * n, "parsed": ["1" if c else None for c in correct]}
    values |= {"seconds_generate": [2.0] * n}
    return pa.table(values, schema=schema.SCORED)


def test_a_finished_batch_is_there_again_and_an_unfinished_one_is_not(tmp_path):
    folder = EvaluationFolder(tmp_path / "e", {"seed": 0})
    table = batch([True, False])
    folder.save(3, table)
    again = EvaluationFolder(tmp_path / "e", {"seed": 0})
    assert again.finished(3).equals(table)
    assert again.finished(0) is None
    assert len(again.tables()) == 1


def test_another_evaluation_is_refused_by_what_differs(tmp_path):
    EvaluationFolder(tmp_path, {"seed": 0, "model": "a", "sampling": {"steps": 3}})
    with pytest.raises(ConfigError, match="another sampling, seed; give another --output"):
        EvaluationFolder(tmp_path, {"seed": 1, "model": "a", "sampling": {"steps": 4}})


def test_a_cell_sums_over_batches_and_stands_in_the_table():
    cell = cell_of("m", "gsm8k", 16, [batch([True, False]), batch([True])])
    assert (cell.n, cell.accuracy, cell.partial, cell.parse_failures) == (3, 2 / 3, 0.5, 1 / 3)
    assert cell.forwards_per_token == 3 * 8 / (3 * 16)
    assert cell.tokens_per_s == 3 * 16 / 4  # two seconds a batch
    other = cell_of("m", "math", 32, [batch([True])])
    lines = markdown([cell, other]).splitlines()
    assert lines[:3] == ["| accuracy, % | gsm8k 16 | math 32 |", "|---|---|---|", "| m | 66.7 | 100.0 |"]


def test_a_cell_of_several_samples_counts_examples_and_reports_pass_at_k_and_the_majority():
    # Three examples with one, two and no right answers of two; a wrong completion has no answer here.
    cell = cell_of("m", "gsm8k", 16, [batch([True, False, True, True]), batch([False, False])], samples=2)
    assert (cell.n, cell.samples, cell.accuracy) == (3, 2, 0.5)
    assert {k: share.value for k, share in cell.pass_at.items()} == {1: 0.5, 2: pytest.approx(2 / 3)}
    assert cell.majority.value == pytest.approx(2 / 3)
    last = markdown([cell]).splitlines()[-1]
    assert last.startswith("| gsm8k 16 | 2 | pass@1 50.0 %") and "maj@2 66.7 %" in last
    assert "pass@" not in markdown([cell_of("m", "gsm8k", 16, [batch([True])])])


def test_votes_for_the_same_number_count_together():
    rows = batch([True, True, False, False, False])
    answers = pa.array([r"\frac{1}{2}", "0.5", "7", "8", "9"])
    rows = rows.set_column(rows.schema.get_field_index("parsed"), "parsed", answers)
    vote = load_task("math").vote
    assert cell_of("m", "math", 16, [rows], samples=5, vote=vote).majority.value == 1
    swapped = rows.take(pa.array([2, 3, 4, 0, 1]))
    assert cell_of("m", "math", 16, [swapped], samples=5).majority.value == 0  # each its own
    assert cell_of("m", "math", 16, [swapped], samples=5, vote=vote).majority.value == 1
