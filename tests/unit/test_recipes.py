"""Every recipe can start: its evaluation sets exist, and its prompts and demonstrations fit."""

import pytest

from d1ray import rng
from d1ray.models import character_tokenizer, encode_completion, encode_prompt
from d1ray.recipe import load_config, recipe_names
from d1ray.tasks.source import open_data


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_finds_as_many_held_out_examples_as_it_asks_for(name: str) -> None:
    config = load_config(name)
    data = open_data(config.task, config.data.path, config.seed)
    assert len(data.examples("test", config.evaluation.examples)) == config.evaluation.examples
    asked = config.evaluation.validation_examples
    assert len(data.examples("validation", asked)) == asked


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipes_prompts_and_demonstrations_fit_its_lengths(name: str) -> None:
    config = load_config(name)
    data, tokenizer = open_data(config.task, config.data.path, config.seed), character_tokenizer()
    for index in range(200):
        example = data.train(index)
        encode_prompt(tokenizer, example.prompt, config.data.max_prompt_length)
        for style in ("clean", "corrupted"):
            text = config.task.demonstration(example, style, rng.generator(0, "demonstration", index))
            length = config.data.max_completion_length
            assert len(encode_completion(tokenizer, text, length, tokenizer.eos_token_id)) == length
