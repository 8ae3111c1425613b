"""Signs of self-correction: what counts, and what only looks like it."""

from pathlib import Path

import pytest

from d1ray.report.signs import SIGNS, answers_of, count_signs

DOCS = Path(__file__).parents[2] / "docs" / "report.md"


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        ("Wait, 3 + 4 is 7.", {"wait": 1}),
        ("so 8. Wait! No wait, it is 7", {"wait": 2}),
        ("Hmm. Oops, hold on.", {"hesitation": 3}),
        ("It is actually 7.", {"actually": 1}),
        ("Let me check. Let’s quickly verify; I should make sure.", {"check": 3}),
        ("We recheck it and double-checked: re-evaluating, check again.", {"second look": 4}),
        ("That is wrong, a mistake; it doesn't add up.", {"mistake": 3}),
        ("Correction: let me fix it.", {"correction": 2}),
        ("Try again. Alternatively, another approach.", {"another try": 3}),
        ("<answer>7</answer> so <answer> 7 </answer>", {"answers twice": 1}),
        ("<answer>8</answer> no, <answer>7</answer>", {"changes its answer": 1}),
        (r"\boxed{8}, then \boxed{7}, then \boxed{7}", {"changes its answer": 1, "answers twice": 1}),
    ],
)
def test_a_sign_counts_each_time_it_occurs(text: str, signs: dict[str, int]) -> None:
    assert count_signs(text) == signs


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The guests wait 5 minutes for the waiter, who awaits a weight.",
        "Wait 3 hours.",
        "The check is 40 dollars; checking accounts earn 2 %.",
        "the wrongdoer is unmistakably factual, an incorrectness",
        "He reads the correct answer and fixes the car.",
        "<answer>3241</answer>",
        r"<reasoning>\boxed{3}</reasoning><answer>\boxed{4}</answer>",  # only the tags give an answer
        "<answer>your answer</answer> <answer>7</answer>",  # the instruction, repeated
    ],
)
def test_ordinary_text_has_no_sign(text: str) -> None:
    assert count_signs(text) == {}


def test_an_answer_is_the_box_within_its_tags() -> None:
    assert answers_of(r"<answer>x = \boxed{4}</answer> <answer>5") == ["4", "5"]


def test_a_monstrous_completion_is_read_in_linear_time() -> None:
    assert count_signs(" \n" * 200_000 + "check " * 50_000) == {}


def test_every_sign_is_documented() -> None:
    documented = DOCS.read_text(encoding="utf-8")
    for sign in SIGNS:
        assert f"| {sign.name} |" in documented, sign.name
