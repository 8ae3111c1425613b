"""What every task promises: options checked by name, a score for any text, data that survives JSON."""

import json
import re
import time

import numpy as np
import pytest

from d1ray.config.kinds import TASKS, load_task
from d1ray.config.rng import generator
from d1ray.tasks.answers import Answer, find_answer

GARBAGE = {
    "empty": "",
    "NUL": "\x00" * 16,
    "lone surrogates": "\ud800\udfff" * 8,
    "fullwidth digits": "９" * 16,
    "fullwidth sudoku": "１２３４３４１２２１４３４３２１",
    "nested parentheses": "(" * 10_000 + "1" + ")" * 10_000,
    "a megabyte of digits": "9" * 1_000_000,
    "a megabyte of equals signs": "=" * 1_000_000,
    "a megabyte of spaces": " " * 1_000_000,
    "a tower of powers": "9**9**9**9",
    "an open tag": "<answer>",
    "tags inside out": "</answer><answer>",
    "a megabyte of tags": "<answer>" * 125_000,
}


@pytest.fixture(params=sorted(TASKS))
def task(request):
    return load_task(request.param)


ROWS = {  # of tasks that generate nothing
    "dialogue": {"prompt": "Name <reasoning>, <answer> and a colour.", "response": "Blue is a colour."},
    "s1k": {
        "question": "What is $2+3$?",
        "solution": "5",
        "thinking_trajectories": ["Two and three make five."],
        "attempt": "It is $\\boxed{5}$.",
    },
    "gsm8k": {"question": "Tom has 20 and 23 eggs. How many?", "answer": "20 + 23 = <<20+23=43>>43\n#### 43"},
    "math": {"problem": "Evaluate $2+3$.", "answer": "5", "solution": "It is $2+3=\\boxed{5}$."},
}
BEST = {"countdown": 1, "dialogue": 1, "gsm8k": 4, "math": 3, "s1k": 3, "sudoku": 1, "sudoku9": 1}


def example_of(task, split, i):
    return task.example(ROWS[task.name]) if task.name in ROWS else task.draw(split, generator(1, split, i))


@pytest.fixture
def example(task):
    return example_of(task, "train", 0)


@pytest.mark.parametrize(
    "tags", [("", ""), ("<answer>", "</answer>"), ("<answer>", "")], ids=["bare", "tagged", "open"]
)
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_scores_nothing_and_quickly(task, example, garbage, tags):
    started = time.process_time()
    score = task.score(example, tags[0] + garbage + tags[1])
    assert (score.reward, score.partial, score.correct, score.formatted) == (0.0, 0.0, False, False)
    assert time.process_time() - started < 2  # of work, whatever else runs


def test_random_text_never_raises_and_scores_within_bounds(task, example):
    rng = np.random.default_rng(0)
    parts = [
        *"0123456789+-*/()=. \n\x00",
        "<answer>",
        "</answer>",
        "９",
        "\ud800",
        "\\times",
        "**",
        "//",
        "÷",
    ]
    right = task.demonstration(example, "clean", rng)
    for _ in range(2000):
        noise = "".join(rng.choice(parts, size=rng.integers(0, 30)))
        cut = int(rng.integers(len(right)))
        score = task.score(example, right[:cut] + noise + right[cut:])
        assert 0 <= score.partial <= 1
        assert -2 <= score.reward <= BEST[task.name] + 1e-9


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_clean_demonstration_is_correct_and_formatted(task, split):
    for i in range(20):
        example = example_of(task, split, i)
        score = task.score(example, task.demonstration(example, "clean", generator(1, "d", i)))
        assert (score.correct, score.formatted, score.partial, score.reward) == (
            True,
            True,
            1.0,
            BEST[task.name],
        )


def test_an_example_is_json_and_names_its_task(task, example):
    assert json.loads(json.dumps(dict(example.fields))) == example.fields
    assert example.task == task.name


def test_an_example_can_be_read_back_from_its_own_fields(task, example):
    assert task.example(example.fields).key == example.key


def test_a_split_is_8_train_to_1_validation_to_1_test_by_hash(task):
    by_hash = [super(type(task), task).split_of(f"problem {i}") for i in range(5000)]
    assert 0.77 < by_hash.count("train") / 5000 < 0.83
    assert 0.08 < by_hash.count("validation") / 5000 < 0.12


def test_a_task_is_loaded_from_its_own_settings(task):
    assert load_task(task.model_dump()) == task
    assert load_task(task) is task


def test_the_default_prompt_asks_for_reasoning_and_an_answer_and_leaves_no_placeholder(example):
    assert "<reasoning>" in example.prompt and "<answer>" in example.prompt
    assert not re.search(r"\{\w+\}", example.prompt)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "sudko",
            "task.name: unknown task 'sudko' (did you mean 'sudoku'?); "
            f"known tasks: {', '.join(sorted(TASKS))}",
        ),
        ({"name": 4}, f"task.name: unknown task 4; known tasks: {', '.join(sorted(TASKS))}"),
        ({"blanks": 3}, f"task.name: missing; known tasks: {', '.join(sorted(TASKS))}"),
        (["sudoku"], "task: expected a name or a mapping with a name, found ['sudoku']"),
        (
            {"name": "sudoku", "blank": 8},
            "task.blank: unknown option (did you mean 'blanks'?); "
            "options: blanks, name, prefill, template, weights",
        ),
        ({"name": "sudoku", "blanks": "8"}, "task.blanks: Input should be a valid integer, found '8'"),
        (
            {"name": "sudoku", "blanks": 13},
            "task.blanks: Input should be less than or equal to 12, found 13",
        ),
        (
            {"name": "sudoku", "template": "solve"},
            "task.template: a template for this task holds {puzzle}; found 'solve'",
        ),
        ({"name": "countdown", "operations": "+^"}, "task.operations: expected some of +-*/, found '+^'"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(value, message):
    with pytest.raises(ValueError) as error:
        load_task(value)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("", None),
        ("42", None),
        ("42</answer>", None),
        ("<answer>42</answer>", Answer("42", True)),
        ("<answer>4<answer>2</answer>", Answer("2", False)),
        ("<answer>1</answer> or <answer>2</answer>.", Answer("2", False)),
        ("<answer>1</answer></answer>", Answer("1", False)),
        ("<answer>42", Answer("42", False)),
        ("<answer></answer>", Answer("", True)),
        ("<ANSWER>42</ANSWER>", None),
    ],
)
def test_the_answer_is_what_the_last_tags_hold(completion, answer):
    assert find_answer(completion) == answer
