"""`d1ray score`: files of completions in, verdicts out."""

import json

import pytest

from d1ray.config.errors import DataError
from d1ray.config.evaluation import ScoringConfig
from d1ray.config.kinds import load_task
from d1ray.evaluation.score import report, score_file

ROWS = {
    "countdown": [
        {"completion": "<answer>44+19+35 = 98</answer>", "nums": [44, 19, 35], "target": 98},
        {"completion": "<answer>44+19-35</answer>", "nums": [44, 19, 35], "target": 98},
        {"completion": "who knows", "nums": [44, 19, 35], "target": 98},
    ],
    "gsm8k": [
        {"completion": "<answer>\\boxed{43,500}</answer><|eot_id|>", "answer": "43500"},
        {"completion": "\\boxed{43}", "answer": "43500"},
        {"completion": "many", "answer": "#### 7"},
    ],
    "math": [
        {"completion": "\\boxed{0.5}", "answer": "\\frac{1}{2}"},
        {"completion": "\\boxed{2}", "answer": "\\frac{1}{2}"},
        {"completion": "", "answer": "1"},
    ],
    "sudoku": [
        {
            "completion": "<answer>2134341243211243</answer>",
            "puzzle": "2004001203201003",
            "solution": "2134341243211243",
        },
        {
            "completion": "<answer>2134341243211243</answer>",  # changes a given
            "puzzle": "1004001203201003",
            "solution": "1234341223414123",
        },
        {"completion": "?", "puzzle": "2004001203201003", "solution": "2134341243211243"},
    ],
}
ROWS["sudoku"].pop(1)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_completion_is_scored_and_written_in_order(tmp_path, name):
    file, output = write(tmp_path / "in.jsonl", ROWS[name]), tmp_path / "out.jsonl"
    summary = score_file(load_task(name), file, output, ScoringConfig(), processes=1)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(len(ROWS[name])))
    assert [line["correct"] for line in lines] == [True, *[False] * (len(lines) - 1)]
    assert lines[-1]["parsed"] is None
    assert all(line["reward"] == pytest.approx(sum(line["components"].values())) for line in lines)
    assert (summary.n, summary.correct, summary.parse_failures) == (len(lines), 1, 1)
    assert "1 of" in report(summary)
    assert "without a readable answer" in report(summary)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON"),
        ('{"answer": "3"}', "line 2: completion must be text, found None"),
        ('{"completion": 3, "answer": "3"}', "line 2: completion must be text, found 3"),
        ('{"completion": "3"}', "line 2: gsm8k needs 'answer'; found completion"),
        ('{"completion": "3", "answer": "three"}', "line 2: answer must be a number"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(tmp_path, line, said):
    file = tmp_path / "in.jsonl"
    file.write_text('{"completion": "3", "answer": "3"}\n' + line + "\n")
    with pytest.raises(DataError, match=said):
        score_file(load_task("gsm8k"), file, tmp_path / "out.jsonl", ScoringConfig())
    assert not (tmp_path / "out.jsonl").exists()


def test_an_empty_file_is_an_error(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        score_file(load_task("gsm8k"), file, None, ScoringConfig())
