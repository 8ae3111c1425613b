"""Prompt/response data: two columns or one exchange of messages."""

import pytest

from d1ray.config.kinds import load_task
from d1ray.config.rng import generator


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi?", "response": "Hello."}, "Hi?"),
        (
            {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]},
            "Hi?",
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "Hi?"},
                    {"role": "assistant", "content": "Hello."},
                ]
            },
            "Be kind.\nHi?",
        ),
    ],
)
def test_a_row_is_a_prompt_and_the_response_to_learn(row, prompt):
    task = load_task("dialogue")
    example = task.example(row)
    assert example.prompt == prompt
    assert task.demonstration(example, "clean", generator(0, "d")) == "Hello."
    assert task.score(example, " Hello.\n<|endoftext|>").correct
    assert not task.score(example, "Hello!").correct


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi?", "response": " "}, "response must be text, found ' '"),
        ({"prompt": 3, "response": "Hello."}, "prompt must be text, found 3"),
        ({"messages": []}, r"one exchange .* found none"),
        (
            {"messages": [{"role": r, "content": "x"} for r in ("user", "assistant", "user", "assistant")]},
            "found user, assistant, user, assistant",
        ),
        ({"messages": ["user"]}, "found None"),
        (
            {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "x"}]},
            "content of user must be text, found None",
        ),
    ],
)
def test_another_row_is_an_error(row, said):
    with pytest.raises(ValueError, match=said):
        load_task("dialogue").example(row)
