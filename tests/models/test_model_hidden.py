"""Hidden states at chosen columns, their gradients, and gradient checkpointing, for every architecture."""

import pytest
import torch

from d1ray.models.dream import Dream
from d1ray.models.dream_config import DreamConfig
from d1ray.models.initialise import initialise
from d1ray.models.llada import LLaDA
from d1ray.models.llada_config import LLaDAConfig

SPECIAL = {"mask_token_id": 1, "eos_token_id": 0, "pad_token_id": 0, "vocab_size": 20}
MODELS = {
    "llada": lambda: LLaDA(
        LLaDAConfig(d_model=32, n_layers=3, n_heads=4, mlp_hidden_size=48, max_sequence_length=64, **SPECIAL)
    ),
    "llada, grouped and tied": lambda: LLaDA(
        LLaDAConfig(
            d_model=32,
            n_layers=3,
            n_heads=4,
            n_kv_heads=2,
            mlp_hidden_size=48,
            max_sequence_length=64,
            weight_tying=True,
            **SPECIAL,
        )
    ),
    "dream": lambda: Dream(
        DreamConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            **SPECIAL,
        )
    ),
}
IDS = torch.tensor(
    [[4, 11, 5, 2, 1, 1, 19, 0, 1], [13, 13, 3, 1, 1, 8, 15, 9, 1], [13, 6, 3, 1, 7, 1, 1, 1, 2]]
)
MASK = torch.tensor([[1] * 9, [0] * 2 + [1] * 7, [0] + [1] * 8])
COLUMNS = {
    "a range shared by the rows": torch.tensor([[4, 5, 6]]).expand(3, -1),
    "a range for each row": torch.tensor([[0, 1, 2], [6, 7, 8], [1, 2, 3]]),
    "scattered": torch.tensor([[8, 0, 3], [2, 5, 4], [1, 8, 6]]),
    "one": torch.tensor([[0], [2], [8]]),
    "all": torch.arange(9).expand(3, -1),
}


@pytest.fixture(params=MODELS)
def model(request):
    return initialise(MODELS[request.param](), 0)


@pytest.mark.parametrize("mask", [None, MASK], ids=["unpadded", "padded"])
@pytest.mark.parametrize("at", COLUMNS.values(), ids=COLUMNS)
def test_hidden_states_at_some_columns_are_those_of_the_whole_pass(model, at, mask):
    if mask is not None:
        at = at.maximum(mask.argmax(-1, keepdim=True))  # padding has no defined output
    with torch.no_grad():
        some, every = model.hidden(IDS, mask, at=at), model.hidden(IDS, mask)
    assert some.shape == (3, at.shape[1], 32)
    assert (some - every[torch.arange(3)[:, None], at]).abs().max() < 1e-5


def test_the_logits_are_the_head_of_the_hidden_states(model):
    with torch.no_grad():
        assert torch.equal(model(IDS, MASK), model.head(model.hidden(IDS, MASK)))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def scored(logits):
    return (logits.log_softmax(-1)[..., 5] * torch.linspace(-1, 2, logits.shape[1])).sum()


@pytest.mark.parametrize("at", COLUMNS.values(), ids=COLUMNS)
def test_gradients_at_some_columns_are_those_of_the_whole_pass(model, at):
    at = at.maximum(MASK.argmax(-1, keepdim=True))
    some = gradients(model, scored(model.head(model.hidden(IDS, MASK, at=at))))
    every = gradients(model, scored(model(IDS, MASK)[torch.arange(3)[:, None], at]))
    for name in every:
        assert every[name].abs().max() > 1e-6
        assert (some[name] - every[name]).abs().max() < 1e-4 * (1 + every[name].abs().max())


@pytest.mark.parametrize("at", [None, COLUMNS["a range for each row"]])
def test_gradient_checkpointing_changes_no_gradient_and_computes_each_block_twice(model, at):
    calls = []
    for block in model.blocks():
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    plain = gradients(model, scored(model.head(model.hidden(IDS, MASK, at=at))))
    assert len(calls) == 3
    model.gradient_checkpointing = True
    recomputed = gradients(model, scored(model.head(model.hidden(IDS, MASK, at=at))))
    assert len(calls) == 3 + 6
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    with torch.no_grad():
        model.hidden(IDS, MASK, at=at)
    assert len(calls) == 3 + 6 + 3


def test_only_the_columns_asked_for_pass_through_the_last_mlp(model):
    widths = []
    for block in model.blocks():
        (block.ff_out if hasattr(block, "ff_out") else block.mlp).register_forward_hook(
            lambda _, args, __: widths.append(args[0].shape[1])
        )
    with torch.no_grad():
        model.hidden(IDS, MASK, at=COLUMNS["scattered"])
    assert widths == [9, 9, 3]


def test_rotary_positions_are_exact_in_bf16_far_from_the_start(model):
    # RoPE is relative, so a shift changes nothing; bf16 positions would be multiples of 16 there.
    model = model.to(torch.bfloat16)
    positions = torch.arange(9)[None].expand(3, -1)
    with torch.no_grad():
        near, far = (model(IDS, None, positions + start).float() for start in (0, 3000))
    assert (near - far).abs().mean() < 0.02 * near.abs().mean()


def test_norms_do_not_overflow_in_half_precision(model):
    norm = next(m for name, m in model.named_modules() if name.endswith("norm")).half()
    assert torch.equal(norm(torch.full((1, 32), 1000.0).half()), torch.ones(1, 32).half())


def test_more_columns_than_the_context_are_refused(model):
    context = torch.full((1, 64), 3)
    with torch.no_grad():
        assert model(context).shape == (1, 64, 20)
        with pytest.raises(ValueError, match="65 columns, more than the model's max_sequence_length=64"):
            model(torch.full((1, 65), 3))
        with pytest.raises(ValueError, match="65 columns"):
            model.hidden(torch.full((1, 65), 3), torch.tensor([[0] + [1] * 64]), at=torch.tensor([[64]]))
