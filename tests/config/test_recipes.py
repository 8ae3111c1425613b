"""Every recipe can start: its evaluation sets exist, and its prompts and demonstrations fit."""

from pathlib import Path

import pytest
import torch

from d1ray.config import rng
from d1ray.config.recipe import load_config, recipe_names
from d1ray.config.run import Config
from d1ray.models.architectures import read_config
from d1ray.models.character_tokenizer import character_tokenizer
from d1ray.models.chat import encode_completion, encode_prompt
from d1ray.models.dream import Dream
from d1ray.models.llada import LLaDA
from d1ray.models.load import check_lora
from d1ray.models.tokenizer import load_tokenizer
from d1ray.run.data import examples_of

MADE = [name for name in recipe_names() if load_config(name).model.make]
PRETRAINED = [name for name in recipe_names() if name not in MADE]
LOCAL = {"gsm8k": "gsm8k", "math": "math", "countdown": "countdown", "sudoku": "sudoku4x4"}


def test_the_models_of_the_recipes_are_made_or_pretrained() -> None:
    assert "sudoku-tiny" in MADE
    assert "llada-8b-gsm8k" in PRETRAINED


@pytest.mark.parametrize("name", MADE)
def test_a_recipe_finds_as_many_held_out_examples_as_it_asks_for(name: str) -> None:
    config = load_config(name)
    data = examples_of(config.data, config.task, config.seed, character_tokenizer())
    assert len(data.examples("test", config.evaluation.examples)) == config.evaluation.examples
    asked = config.evaluation.validation_examples
    assert len(data.examples("validation", asked)) == asked


@pytest.mark.parametrize("name", MADE)
def test_a_recipes_prompts_and_demonstrations_fit_its_lengths(name: str) -> None:
    config, tokenizer = load_config(name), character_tokenizer()
    data = examples_of(config.data, config.task, config.seed, tokenizer)
    for index in range(200):
        example = data.train(index)
        encode_prompt(tokenizer, example.prompt, config.data.max_prompt_length)
        for style in ("clean", "corrupted"):
            text = config.task.demonstration(example, style, rng.generator(0, "demonstration", index))
            length = config.data.max_completion_length
            assert len(encode_completion(tokenizer, text, length, tokenizer.eos_token_id)) == length


def with_local_data(name: str, data_dir: Path, tmp_path: Path) -> Config:
    """The recipe, with the data set that lies here in place of the hub's."""
    config = load_config(name)
    folder = data_dir / LOCAL[config.task.name]
    if config.task.name == "math":  # its test file is MATH-500
        for split, source in (("train", folder), ("test", data_dir / "math500")):
            (tmp_path / f"{split}.parquet").symlink_to(source / f"{split}.parquet")
        folder = tmp_path
    return load_config(name, [f"data.path={folder}"])


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_real_prompts_fit_a_recipe_of_real_size(name: str, data_dir: Path, tmp_path: Path) -> None:
    """With Dream's tokenizer, the one at hand; no test example may be left out."""
    config = with_local_data(name, data_dir, tmp_path)
    tokenizer = load_tokenizer(data_dir.parent / "models" / "dream-7b")
    data = examples_of(config.data, config.task, config.seed, tokenizer)
    assert sum(data.dropped.values()) < 75 and not data.dropped.get("test")
    tests = data.examples("test", config.evaluation.examples)
    assert len(tests) == {"gsm8k": 1319, "math": 500, "countdown": 256, "sudoku": 500}[config.task.name]
    for example in [*tests, *(data.rows("train") or map(data.train, range(200)))]:
        encode_prompt(tokenizer, example.prompt, config.data.max_prompt_length, example.prefill)


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_recipe_of_real_size_fits_its_model(name: str, data_dir: Path) -> None:
    config = load_config(name)
    dream = name.startswith("dream")
    folder = data_dir.parent / "models" / ("dream-7b" if dream else "llada-8b")
    architecture = read_config(folder)
    config.check_length(architecture.max_sequence_length, "its context")
    with torch.device("meta"):
        model = Dream(architecture) if dream else LLaDA(architecture)
    stages = [stage for stage in (config.sft, config.rl) if stage]
    assert stages and all(stage.lora for stage in stages)
    for stage in stages:
        check_lora(model, stage.lora)
    assert config.cluster.generators * config.cluster.generator_gpus <= 8


@pytest.mark.parametrize("name", PRETRAINED)
def test_rl_starts_from_the_prompts_that_evaluation_uses(name: str) -> None:
    config = load_config(name)
    assert config.task.prefill == "<reasoning>"
    sampling = config.evaluation.sampling
    assert (sampling.temperature, sampling.steps, sampling.block_length) == (0, sampling.gen_length // 2, 32)


def test_sft_on_s1k_is_twenty_epochs_at_the_full_context(tmp_path: Path) -> None:
    config = load_config("llada-8b-s1k")
    assert config.sft is not None and config.sft.data is not None and config.sft.task is not None
    assert config.sft.data.max_prompt_length + config.sft.data.max_completion_length == 4096
    train = sum(config.sft.task.split_of(f"question {i}") == "train" for i in range(1000))
    assert round(config.sft.steps * config.sft.batch_size / train) == 20
