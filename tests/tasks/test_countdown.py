"""Countdown: d1's reward on cases worked by hand, and problems that can be solved."""

from fractions import Fraction

import numpy as np
import pyarrow.parquet as pq
import pytest

from d1ray.config.errors import DataError
from d1ray.config.rng import generator
from d1ray.tasks.answers import tagged
from d1ray.tasks.countdown import Countdown
from d1ray.tasks.countdown_search import OPERATIONS, random_expression, solve
from d1ray.tasks.expression import parse_expression

SPLITS = ("train", "validation", "test")


@pytest.fixture
def example():
    """44 + 19 + 35 = 98."""
    return Countdown().example({"nums": [44, 19, 35], "target": 98})


def draws(task, split, n):
    return [task.draw(split, generator(0, f"test/{split}", i)) for i in range(n)]


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("44+19+35", 1.0),
        ("(35 + 44) + 19", 1.0),
        ("44+19+35=98", 1.0),
        ("44+19+35 = 99 - 1", 1.0),
        ("44+19+35=97", 1.0),  # the equation is false
        ("44+19+35=", 1.0),
        ("98=44+19+35", 1.0),  # the left side is judged
        ("98", 0.1),  # right value, wrong numbers
        ("44+19+35+0", 0.1),
        ("44+44+10", 0.1),
        ("44+19-35", 0.1),  # right numbers, wrong value
        ("35", 0.1),
        ("", 0.0),
        ("the numbers 44, 19 and 35", 0.0),
        ("44+19+35+", 0.0),
        ("44+19+35.0", 0.0),
        ("44+19+35/0", 0.0),
        ("44**19**35", 0.0),
    ],
)
def test_a_right_answer_earns_1_another_expression_a_tenth_and_anything_else_nothing(example, answer, reward):
    score = Countdown().score(example, tagged(answer))
    assert (score.reward, score.correct, score.partial) == (reward, reward == 1, float(reward == 1))


@pytest.mark.parametrize(
    ("nums", "target", "answer"),
    [
        ([3, 3, 8, 8], 24, "8/(3-8/3)"),  # only fractions on the way reach 24
        ([6, 7], 42, "6 \\times 7"),
        ([84, 2], 42, "84 ÷ 2"),
        ([7, 7, 7], 7, "7+7-7"),
        ([3, 10], 7, "-3+10"),
    ],
)
def test_exact_fractions_and_every_spelling_are_judged_right(nums, target, answer):
    task = Countdown()
    assert task.score(task.example({"nums": nums, "target": target}), tagged(answer)).correct


def test_a_rounded_value_is_not_the_target():
    example = Countdown().example({"nums": [1, 3, 3], "target": 1})
    assert not Countdown().score(example, tagged("1/3*3333333/1111111")).correct


def test_an_operation_the_task_leaves_out_is_wrong():
    task = Countdown(operations="+-")
    assert task.score(task.example({"nums": [6, 7], "target": 42}), tagged("6*7")).reward == 0.1


def test_an_expression_without_tags_is_no_answer(example):
    assert Countdown().score(example, "44+19+35").reward == 0


def test_a_missing_closing_tag_counts_as_right_but_not_as_formatted(example):
    score = Countdown().score(example, "<reasoning>all</reasoning><answer>44+19+35")
    assert (score.correct, score.formatted) == (True, False)


def test_the_last_of_two_answers_counts_but_is_not_formatted(example):
    score = Countdown().score(example, tagged("1+1") + tagged("44+19+35"))
    assert (score.correct, score.formatted) == (True, False)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("numbers", [2, 3, 4])
def test_a_drawn_problem_is_solved_by_its_own_expression(split, numbers):
    task = Countdown(numbers=numbers, max_number=50, max_target=60)
    for example in draws(task, split, 20):
        assert len(example.fields["nums"]) == numbers
        assert max(example.fields["nums"]) <= 50
        assert 1 <= example.fields["target"] <= 60
        assert task.score(example, tagged(example.fields["expression"])).reward == 1.0


def test_the_splits_share_no_problem():
    task = Countdown(numbers=2, max_number=20)
    keys = [{e.key for e in draws(task, split, 300)} for split in SPLITS]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])


def test_the_order_of_the_numbers_does_not_make_another_problem(example):
    assert Countdown().example({"nums": [35, 44, 19], "target": 98}).key == example.key


def test_drawn_expressions_keep_to_the_operations():
    for example in draws(Countdown(operations="*-"), "train", 50):
        assert parse_expression(example.fields["expression"]).operations <= set("*-")


def test_options_without_problems_are_an_error_that_says_what_to_change():
    task = Countdown(numbers=2, max_number=1, operations="-")  # 1 - 1 is never positive
    with pytest.raises(DataError, match=r"raise task\.max_target"):
        task.draw("train", generator(0, "t"))


def test_the_prompt_is_the_template_with_numbers_and_target():
    task = Countdown(template="{numbers}>{target}")
    assert task.example({"nums": [44, 19, 35], "target": 98}).prompt == "44, 19, 35>98"


@pytest.mark.parametrize(
    ("nums", "target", "message"),
    [
        ("44,19,35", 98, "nums must"),
        ([44], 98, "nums must"),
        ([1] * 7, 7, "nums must"),
        ([44, 19, "35"], 98, "nums must"),
        ([44, 19, 35.0], 98, "nums must"),
        ([44, 19, 0], 98, "nums must"),
        ([44, 19, True], 98, "nums must"),
        ([44, None], 98, "nums must"),
        ([44, 19, 35], -98, "target must"),
        ([44, 19, 35], 98.5, "target must"),
        ([44, 19, 35], None, "target must"),
    ],
)
def test_a_bad_row_is_a_value_error_that_says_why(nums, target, message):
    with pytest.raises(ValueError, match=message):
        Countdown().example({"nums": nums, "target": target})


def test_written_expressions_have_the_value_they_were_built_with():
    """Parentheses are left out where they are not needed: the parser must still read the same value."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        numbers = rng.integers(1, 10, size=4).tolist()
        term = random_expression(numbers, OPERATIONS, rng)
        if term is not None:
            parsed = parse_expression(term.text)
            assert (parsed.value, sorted(parsed.numbers)) == (Fraction(term.value), sorted(numbers))


def test_the_search_finds_the_only_kind_of_solution_of_3388():
    assert parse_expression(solve([3, 3, 8, 8], 24, OPERATIONS)).value == 24


def test_the_search_says_when_there_is_none():
    assert solve([1, 1, 1], 50, OPERATIONS) is None


def test_a_clean_demonstration_of_a_file_row_is_searched_for(example):
    demonstration = Countdown().demonstration(example, "clean", generator(0, "t"))
    assert Countdown().score(example, demonstration).reward == 1.0


def test_a_demonstration_of_an_unsolvable_row_is_a_value_error():
    example = Countdown().example({"nums": [1, 1, 1], "target": 50})
    with pytest.raises(ValueError, match="no expression over"):
        Countdown().demonstration(example, "clean", generator(0, "t"))


def test_corrupted_demonstrations_lack_either_the_tags_or_the_value(example):
    made = [Countdown().demonstration(example, "corrupted", generator(0, "t", i)) for i in range(200)]
    bare = [d for d in made if "<" not in d]
    assert 60 < len(bare) < 140  # half of them, within 5 standard deviations
    assert all(Countdown().score(example, tagged(d)).correct for d in bare)
    assert all(Countdown().score(example, d).reward == 0.1 for d in made if d not in bare)


def test_every_published_test_problem_is_an_example_and_can_be_solved(data_dir):
    task = Countdown()
    for row in pq.read_table(data_dir / "countdown" / "test.parquet").to_pylist():
        example = task.example(row)
        assert task.score(example, task.demonstration(example, "clean", generator(0, "t"))).reward == 1.0
