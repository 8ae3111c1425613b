"""MATH: rewards, and the real gold answers."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from d1ray.config.kinds import load_task

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
TASK = load_task("math")
EXAMPLE = TASK.example({"problem": "Half?", "answer": "\\frac{1}{2}"})
WELL = "<reasoning>\nwe get 7 and 12\n</reasoning>\n<answer>\n\\boxed{%s}\n</answer>"


@pytest.mark.parametrize(
    ("completion", "reward", "correct"),
    [
        (WELL % "\\frac12", 3.0, True),
        (WELL % "2", 1.0, False),
        ("so \\boxed{0.5}", 2.5, True),
        ("<answer>1/2</answer>", 2.0, True),
        ("It is 1/2", 0.0, False),
        ("<answer>\\boxed{1/2", 3.0, True),
    ],
)
def test_right_answers_and_boxes_earn_their_rewards(completion, reward, correct):
    score = TASK.score(EXAMPLE, completion)
    assert (score.reward, score.correct) == (reward, correct)


def test_the_answer_may_stand_in_the_solution():
    assert TASK.score(TASK.example({"solution": "so $\\boxed{3}$"}), "\\boxed{3}").correct


def renderings(answer):
    return (f"<answer>{answer}</answer>", f"so \\boxed{{{answer}}}", WELL % answer)


@pytest.mark.skipif(not (DATA / "math500").is_dir(), reason="no real data here")
@pytest.mark.parametrize(("file", "step"), [("math500/test.parquet", 3), ("math/train.parquet", 30)])
def test_gold_answers_are_right_in_three_renderings_and_perturbed_ones_are_wrong(file, step):
    """All different answers are tried, and every ``step``-th perturbed, which only sympy can tell."""
    rows = [row for row in pq.read_table(DATA / file).to_pylist() if row["answer"]]
    examples = {row["answer"]: TASK.example(row) for row in rows}
    golds = list(examples)
    right = sum(TASK.score(examples[gold], text).correct for gold in golds for text in renderings(gold))
    wrong = tried = 0
    for i, gold in enumerate(golds[::step]):
        other = golds[(7 * i + 3) % len(golds)]
        perturbed = [gold + "+1"] + ([other] if other != gold else [])
        if digits := [k for k, c in enumerate(gold) if c.isdigit()]:
            k = digits[-1]
            perturbed.append(gold[:k] + str((int(gold[k]) + 1) % 10) + gold[k + 1 :])
        wrong += sum(not TASK.score(examples[gold], WELL % text).correct for text in perturbed)
        tried += len(perturbed)
    assert right >= 0.98 * 3 * len(golds)
    assert wrong >= 0.98 * tried
