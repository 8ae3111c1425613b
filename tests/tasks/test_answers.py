"""Finding the answer in a completion."""

import pytest

from d1ray.tasks.answers import boxes, final_answer, until_end


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{5}", ["5"]),
        (r"\boxed{\frac{1}{2}} and \fbox{7}", [r"\frac{1}{2}", "7"]),
        (r"\boxed{a\}b}", [r"a\}b"]),
        (r"\boxed 5 is it", ["5"]),
        ("\\boxed{5 apples\nnext line", ["5 apples"]),
        (r"\boxed{\boxed{7}}", [r"\boxed{7}", "7"]),
        ("no box, \\box{5}", []),
    ],
)
def test_boxes_are_read_with_balanced_braces(text, found):
    assert boxes(text) == found


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{3} <answer>\boxed{18}</answer>", "18"),
        ("\\boxed{3} <answer>18</answer>", "18"),  # what stands between the tags is the answer
        ("<answer>\\boxed{1} then \\boxed{2}</answer>", "2"),
        ("<answer>18", "18"),
        ("<answer>18</answer><answer></answer>", "18"),
        (r"<answer>...</answer> \boxed{4}", "4"),
        (r"<answer>\boxed{...}</answer> so \boxed{4}", "4"),
        (r"\boxed{4} <answer>your answer</answer>", "4"),
        (r"so \boxed{4}, that is \boxed{}", "4"),
        ("It is 18.", None),
        (r"<answer>\boxed{}</answer>", None),
    ],
)
def test_the_final_answer_is_the_one_a_reader_takes(text, answer):
    found = final_answer(text)
    assert (found.text if found else None) == answer


def test_an_answer_says_whether_it_was_boxed_and_well_tagged():
    assert final_answer(r"<answer>\boxed{1}</answer>") == final_answer(r"x<answer> \boxed{1} </answer>")
    assert final_answer(r"<answer>\boxed{1}</answer>").well_tagged
    assert final_answer(r"<answer>\boxed{1}</answer>").boxed
    assert not final_answer("<answer>1</answer>").boxed
    assert not final_answer("<answer>1").well_tagged
    assert not final_answer(r"\boxed{1}").well_tagged


def test_nothing_after_the_end_of_the_turn_is_read():
    assert until_end("18<|eot_id|><answer>19</answer>") == "18"
    assert until_end("18<|endoftext|><|endoftext|>") == "18"
    assert until_end("1 < 8 | 9") == "1 < 8 | 9"
