"""A step gives one gradient, however its batch is laid out; the validation loss is a fixed quantity."""

import numpy as np
import pytest
import torch

from d1ray.config.lora import LoRAConfig
from d1ray.config.recipe import load_config
from d1ray.config.sft import SFTConfig
from d1ray.diffusion.masked_loss import MaskedDiffusionLoss
from d1ray.diffusion.noise import forward_process
from d1ray.models.lora import adapter_tensors, add_lora
from d1ray.rl.optimizer import adamw
from d1ray.sft.demonstrations import Demonstrations, Phase
from d1ray.sft.masked_training import training_step, validation_loss

PLAIN = {"batch_size": 6, "steps": 4, "optimizer": {"learning_rate": 1e-3}}


def run_of(sft, completion=24):
    config = load_config(
        "countdown-tiny",
        ["model.make.max_sequence_length=64", f"data.max_completion_length={completion}", "sft=null"],
    )
    phase = Phase("sft", 1000, SFTConfig.model_validate(PLAIN | sft))
    return config, phase


def stepped(make_text_model, tokenizer, sft, steps=1):
    """The model after ``steps`` steps, and their rows."""
    config, phase = run_of(sft)
    model = make_text_model()
    optimizer = adamw(model, phase.config.optimizer)
    demonstrations = Demonstrations(config, phase, tokenizer, model.config.eos_token_id)
    loss = MaskedDiffusionLoss(model)
    return model, [training_step(loss, model, optimizer, demonstrations, step) for step in range(steps)]


@pytest.mark.parametrize(
    "layout",
    [
        {"micro_batch_tokens": 100},
        {"micro_batch_tokens": 1},
        {"eos_padding": 8, "micro_batch_tokens": 100},
        {"eos_padding": 8, "packing": True},
        {"eos_padding": 8, "packing": True, "micro_batch_tokens": 64},
        {"gradient_checkpointing": True},
    ],
)
def test_the_layout_of_a_batch_changes_nothing_but_rounding(make_text_model, tokenizer, layout):
    plain, expected = stepped(make_text_model, tokenizer, {"eos_padding": layout.get("eos_padding")})
    model, rows = stepped(make_text_model, tokenizer, layout)
    for key in ("loss", "grad_norm"):
        assert rows[0][key] == pytest.approx(expected[0][key], rel=1e-5)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], rtol=0, atol=1e-4)  # Adam divides by |g|


def test_bf16_is_near_fp32_and_keeps_weights_and_gradients_in_fp32(make_text_model, tokenizer):
    _, expected = stepped(make_text_model, tokenizer, {}, steps=3)
    model, rows = stepped(make_text_model, tokenizer, {"precision": "bf16"}, steps=3)
    losses, exact = ([row["loss"] for row in some] for some in (rows, expected))
    assert losses != exact
    assert np.allclose(losses, exact, rtol=0.03)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_an_adapter_of_bf16_weights_is_fp32(make_text_model):
    model = add_lora(make_text_model().to(torch.bfloat16), LoRAConfig(r=2, alpha=4))
    assert {tensor.dtype for tensor in adapter_tensors(model).values()} == {torch.float32}
    assert model(torch.tensor([[4, 5, 6]])).dtype == torch.bfloat16


def test_the_validation_loss_is_that_of_each_demonstration_alone(make_text_model, tokenizer):
    config, phase = run_of({"eos_padding": 4})
    model = make_text_model()
    demonstrations = Demonstrations(config, phase, tokenizer, model.config.eos_token_id)
    held_out = demonstrations.validation(5)
    total = tokens = 0
    for i, one in enumerate(held_out):
        size = len(one.completion)
        level, masked = forward_process(
            np.array([size]), size, phase.config.eps, 0, rows=[i], stream="sft validation", strata=5
        )
        ids = torch.tensor([[*one.prompt, *one.completion]])
        noised = ids.clone()
        noised[0, len(one.prompt) :][torch.from_numpy(masked[0])] = model.config.mask_token_id
        with torch.no_grad():
            logps = model(noised)[0].log_softmax(-1)
        at = len(one.prompt) + np.flatnonzero(masked[0])
        total -= sum(float(logps[column, ids[0, column]]) for column in at) / float(level[0])
        tokens += size
    for changes in ({}, {"packing": True}, {"micro_batch_tokens": 40}):
        found = validation_loss(
            MaskedDiffusionLoss(model), model, held_out, phase.config.model_copy(update=changes)
        )
        assert found == pytest.approx(total / tokens, rel=1e-5)
