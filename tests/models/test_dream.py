"""Dream against transformers' Qwen2 with its causal mask opened and its outputs shifted by one."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from d1ray.diffusion.likelihood import one_step_logps
from d1ray.models.architectures import read_config
from d1ray.models.dream import Dream
from d1ray.models.initialise import initialise

IDS = torch.tensor([[4, 11, 5, 2, 1, 1, 19, 0, 1], [7, 3, 3, 1, 1, 8, 15, 9, 1]])


def qwen_logits(model: Dream, ids) -> torch.Tensor:
    """Logits ``[B, L, V]`` as Dream's own code forms them: Qwen2's, shifted; the first stays in place."""
    c = model.config
    qwen = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.kv_heads,
            vocab_size=c.vocab_size,
            rms_norm_eps=c.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            tie_word_embeddings=c.tie_word_embeddings,
            attn_implementation="eager",
        )
    ).eval()
    weights = dict(model.state_dict())
    if c.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    qwen.load_state_dict(weights)
    length = ids.shape[1]
    with torch.no_grad():
        logits = qwen(ids, torch.zeros(len(ids), 1, length, length)).logits
    return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": None},
        {"num_key_value_heads": 1, "tie_word_embeddings": True},
        {"rope_theta": 100.0, "rms_norm_eps": 1e-2},
    ],
)
def test_the_logits_are_those_of_a_shifted_bidirectional_qwen2(make_dream, changes):
    model = make_dream(**changes)
    with torch.no_grad():
        ours = model(IDS)
    assert ours.std() > 0.3
    assert (ours - qwen_logits(model, IDS)).abs().max() < 1e-5


def test_one_step_log_probabilities_are_those_of_a_shifted_bidirectional_qwen2(make_dream):
    model, prompts = make_dream(), [[4, 11, 5], [7, 3, 19, 13, 2]]
    completions = torch.tensor([[6, 0, 19, 4], [3, 3, 8, 0]])
    masked = torch.tensor([[13, 13, *prompts[0], *[1] * 4], [*prompts[1], *[1] * 4]])
    with torch.no_grad():
        ours = one_step_logps(model, masked, completions, torch.tensor([[0, 0] + [1] * 7, [1] * 9]))
    for row, prompt in enumerate(prompts):
        logits = qwen_logits(model, torch.tensor([prompt + [1] * 4]))[0, len(prompt) :]
        theirs = logits.log_softmax(-1).gather(1, completions[row][:, None])[:, 0]
        assert (ours[row] - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("left", [1, 4])
def test_a_left_padded_row_equals_the_row_alone_from_its_first_token_on(make_dream, left):
    model = make_dream()
    padded = torch.cat([torch.full((2, left), 13), IDS], dim=1)
    padded[1, :left] = 17
    mask = torch.tensor([[0] * left + [1] * 9] * 2)
    at = torch.arange(left, left + 9).expand(2, -1)
    with torch.no_grad():
        alone = qwen_logits(model, IDS)
        assert (model(padded, mask)[:, left:] - alone).abs().max() < 1e-5
        assert (model.head(model.hidden(padded, mask, at=at)) - alone).abs().max() < 1e-5


def test_a_batch_of_different_paddings_has_each_row_alone(make_dream):
    model = make_dream()
    rows = torch.stack([IDS[0], torch.cat([torch.tensor([13, 13]), IDS[1, :7]])])
    mask = torch.tensor([[1] * 9, [0, 0] + [1] * 7])
    with torch.no_grad():
        together = model(rows, mask)
    assert (together[:1] - qwen_logits(model, IDS[:1])).abs().max() < 1e-5
    assert (together[1:, 2:] - qwen_logits(model, IDS[1:, :7])).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_stays_close_to_fp32(make_dream, dtype):
    with torch.no_grad():
        wide, narrow = make_dream()(IDS), make_dream().to(dtype)(IDS)
    assert narrow.dtype == dtype
    assert (wide - narrow.float()).abs().mean() < 0.05 * wide.abs().mean()


@pytest.fixture
def dream_7b():
    """The folder with Dream-7B's config.json and safetensors index (no weights)."""
    folder = Path(__file__).parents[3] / "shared" / "models" / "dream-7b"
    if not folder.is_dir():
        pytest.skip(f"Dream-7B's config and index are not in {folder}")
    return folder


def test_parameter_names_shapes_and_size_are_dream_7bs(dream_7b):
    index = json.loads((dream_7b / "model.safetensors.index.json").read_text())
    with torch.device("meta"):
        state = Dream(read_config(dream_7b)).state_dict()
    assert set(state) == set(index["weight_map"])
    assert sum(2 * tensor.numel() for tensor in state.values()) == index["metadata"]["total_size"]  # bf16


def test_initial_weights_depend_on_the_seed_alone(make_dream):
    torch.manual_seed(0)
    first = initialise(Dream(make_dream().config), 5).state_dict()
    torch.manual_seed(1)
    second = initialise(Dream(make_dream().config), 5).state_dict()
    third = initialise(Dream(make_dream().config), 6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], third[name]) for name in first if first[name].dim() == 2)


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("model.embed_tokens.weight", 0.02),
        ("model.layers.1.self_attn.q_proj.weight", 32**-0.5),
        ("model.layers.1.self_attn.o_proj.weight", 32**-0.5 / 2),  # sqrt(2 layers * 2)
        ("model.layers.0.mlp.down_proj.weight", 48**-0.5 / 2),
        ("lm_head.weight", 32**-0.5),
    ],
)
def test_initial_weights_have_their_standard_deviation(make_dream, name, deviation):
    weight = initialise(Dream(make_dream().config), 0).state_dict()[name]
    assert float(weight.std()) == pytest.approx(deviation, rel=0.11)  # 640 values or more: 2.8 % expected


def test_initial_norms_are_one_and_biases_zero(make_dream):
    state = initialise(Dream(make_dream().config), 0).state_dict()
    assert all((state[name] == 1).all() for name in state if "norm" in name)
    assert all((state[name] == 0).all() for name in state if name.endswith("bias"))
