"""Which demonstrations a step takes, and how completions are cut and padded."""

import json

import pytest

from d1ray.config.errors import DataError
from d1ray.config.recipe import load_config
from d1ray.config.sft import MaskedTrainingConfig, SFTConfig
from d1ray.sft.demonstrations import Demonstrations, Phase, demonstration_index, padded, source_of

EOS = 0


def config(**changes):
    return MaskedTrainingConfig(**changes)


def test_completions_are_padded_with_eos_to_the_longest():
    assert padded([5, 6], 5, EOS, config()) == [5, 6, 0, 0, 0]


def test_or_to_the_next_multiple_with_one_eos_at_least():
    assert padded([5, 6], 9, EOS, config(eos_padding=4)) == [5, 6, 0, 0]
    assert padded([5, 6, 7, 8], 9, EOS, config(eos_padding=4)) == [5, 6, 7, 8, 0, 0, 0, 0]
    assert padded([5] * 8, 9, EOS, config(eos_padding=4)) == [5] * 8 + [0]


def test_a_completion_that_is_too_long_is_refused_or_cut():
    with pytest.raises(ValueError, match=r"4 tokens, more than data.max_completion_length=3.*overlong=trunc"):
        padded([5, 6, 7, 8], 3, EOS, config())
    assert padded([5, 6, 7, 8], 3, EOS, config(overlong="truncate")) == [5, 6, 7]


def test_an_epoch_holds_every_demonstration_once():
    phase = Phase("sft", 3, config(examples=7))
    first, second = ([demonstration_index(0, phase, e * 7 + i) for i in range(7)] for e in range(2))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second


@pytest.fixture
def gsm8k_file(tmp_path):
    rows = [
        {"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def sft_phase(gsm8k_file, **sft):
    data = {"path": str(gsm8k_file), "max_prompt_length": 400, "max_completion_length": 200}
    run = load_config("sudoku-tiny").model_copy(
        update={"sft": SFTConfig.model_validate({"task": "gsm8k", "data": data, "examples": None, **sft})}
    )
    return run, Phase("sft", 1000, run.sft)


def test_sft_may_have_a_task_and_data_of_its_own(gsm8k_file, tokenizer):
    run, phase = sft_phase(gsm8k_file)
    assert source_of(run, phase)[0].name == "gsm8k"
    found = Demonstrations(run, phase, tokenizer, EOS).at(3)
    text = tokenizer.decode([i for i in found.completion if i != EOS])
    assert "</reasoning>" in text and r"\boxed{" in text
    assert len(found.completion) == 200
    assert source_of(run, Phase("pretrain-1", 0, config()))[0].name == "sudoku"


def test_validation_demonstrations_are_never_trained_on(gsm8k_file, tokenizer):
    run, phase = sft_phase(gsm8k_file)
    demonstrations = Demonstrations(run, phase, tokenizer, EOS)
    held_out = {tuple(d.prompt) for d in demonstrations.validation(100)}
    assert held_out
    assert not held_out & {tuple(demonstrations.at(position).prompt) for position in range(200)}


def test_a_demonstration_that_does_not_fit_is_named(gsm8k_file, tokenizer):
    run, _ = sft_phase(gsm8k_file)
    tight = run.sft.data.model_copy(update={"max_completion_length": 20})
    run = run.model_copy(update={"sft": run.sft.model_copy(update={"data": tight})})
    with pytest.raises(DataError, match=r"gsm8k example What is .*overlong=truncate"):
        Demonstrations(run, Phase("sft", 1000, run.sft), tokenizer, EOS).check()
