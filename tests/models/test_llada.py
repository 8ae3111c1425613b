"""LLaDA against two other implementations: one from its description with explicit loops in float64, and
transformers' Llama with its causal mask opened."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from d1ray.diffusion.likelihood import one_step_logps
from d1ray.models.architectures import read_config
from d1ray.models.initialise import initialise
from d1ray.models.llada import LLaDA
from d1ray.models.llada_config import LLaDAConfig


def slow_logits(model: LLaDA, ids: list[int]) -> np.ndarray:
    """Logits ``[L, V]``: pre-norm RMSNorm, rotate-half RoPE, full attention, SwiGLU, no biases."""
    c = model.config
    w = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    size, shared_by = c.d_model // c.n_heads, c.n_heads // (c.n_kv_heads or c.n_heads)

    def norm(x, weight):
        return np.array([row / math.sqrt((row @ row) / len(row) + c.rms_norm_eps) for row in x]) * weight

    def rope(vector, position):
        out = np.empty_like(vector)
        for j in range(size // 2):
            angle = position * c.rope_theta ** (-2 * j / size)
            a, b = vector[j], vector[j + size // 2]
            out[j] = a * math.cos(angle) - b * math.sin(angle)
            out[j + size // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    x = np.array([w["model.transformer.wte.weight"][i] for i in ids])
    for layer in range(c.n_layers):
        p = {k.split(f"blocks.{layer}.")[1]: v for k, v in w.items() if f"blocks.{layer}." in k}
        h = norm(x, p["attn_norm.weight"])
        q, k, v = (h @ p[f"{name}_proj.weight"].T for name in "qkv")
        mixed = np.zeros_like(x)
        for head in range(c.n_heads):
            mine = slice(head * size, (head + 1) * size)
            theirs = slice(head // shared_by * size, (head // shared_by + 1) * size)
            queries = [rope(q[i, mine], i) for i in range(len(ids))]
            keys = [rope(k[i, theirs], i) for i in range(len(ids))]
            for i in range(len(ids)):
                scores = np.array([queries[i] @ key / math.sqrt(size) for key in keys])
                attention = np.exp(scores - scores.max())
                mixed[i, mine] = (attention / attention.sum()) @ v[:, theirs]
        x = x + mixed @ p["attn_out.weight"].T
        h = norm(x, p["ff_norm.weight"])
        gate = h @ p["ff_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ p["up_proj.weight"].T)) @ p["ff_out.weight"].T
    return norm(x, w["model.transformer.ln_f.weight"]) @ w["model.transformer.ff_out.weight"].T


# LLaDA's names in Llama's; .ff_out alone is the head, blocks.{i}.ff_out the MLP's last projection.
LLAMA_NAMES = {
    "model.transformer.wte": "model.embed_tokens",
    "model.transformer.ln_f": "model.norm",
    "model.transformer.ff_out": "lm_head",
    "model.transformer.blocks": "model.layers",
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    ".ff_out": ".mlp.down_proj",
}


def llama_logits(model: LLaDA, ids, attention_mask) -> torch.Tensor:
    """Logits ``[B, L, V]`` of transformers' Llama with the same weights and bidirectional attention."""
    c = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=c.d_model,
            intermediate_size=c.mlp_hidden_size,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.kv_heads,
            vocab_size=c.embeddings,
            rms_norm_eps=c.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            tie_word_embeddings=c.weight_tying,
            attn_implementation="eager",
        )
    ).eval()
    weights = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in LLAMA_NAMES.items():
            name = name.replace(ours, theirs, 1)
        weights[name] = tensor
    if c.weight_tying:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    llama.load_state_dict(weights)
    closed = torch.zeros(len(ids), 1, 1, ids.shape[1]).masked_fill(
        attention_mask[:, None, None] == 0, torch.finfo(torch.float32).min
    )
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return llama(ids, closed.expand(-1, -1, ids.shape[1], -1), positions).logits


IDS = [4, 11, 5, 2, 1, 1, 19, 0, 1]
RAGGED = torch.tensor([IDS, [13, 13, 13, *IDS[3:]], [13, *IDS[:-1]]])
RAGGED_MASK = torch.tensor([[1] * 9, [0] * 3 + [1] * 6, [0] + [1] * 8])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 2},
        {"n_kv_heads": 1, "weight_tying": True},
        {"embedding_size": 24},
        {"embedding_size": 24, "weight_tying": True, "rope_theta": 100.0, "rms_norm_eps": 1e-2},
    ],
)
def test_the_logits_of_ragged_rows_are_those_of_a_bidirectional_llama(make_model, changes):
    model = make_model(**changes)
    with torch.no_grad():
        ours = model(RAGGED, RAGGED_MASK)
    difference = (ours - llama_logits(model, RAGGED, RAGGED_MASK))[RAGGED_MASK.bool()]
    assert ours.shape == (3, 9, changes.get("embedding_size", 20))
    assert ours.std() > 0.3
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 2, "weight_tying": True}])
def test_one_step_log_probabilities_are_those_of_a_bidirectional_llama(make_model, changes):
    model, hidden = make_model(**changes), [1] * 4
    masked = torch.tensor([[13, 13, 4, 11, 5, *hidden], [7, 3, 19, 13, 2, *hidden]])
    mask = torch.tensor([[0, 0] + [1] * 7, [1] * 9])
    completions = torch.tensor([[6, 0, 19, 4], [3, 3, 8, 0]])
    with torch.no_grad():
        ours = one_step_logps(model, masked, completions, mask)
    theirs = llama_logits(model, masked, mask)[:, 5:].log_softmax(-1).gather(2, completions[..., None])
    assert (ours - theirs[..., 0]).abs().max() < 1e-5


@pytest.mark.parametrize("kv_heads", [None, 2, 1])
def test_the_logits_are_those_of_the_slow_implementation(make_model, kv_heads):
    model = make_model(n_kv_heads=kv_heads)
    with torch.no_grad():
        logits = model(torch.tensor([IDS]))[0]
    assert np.abs(logits.numpy() - slow_logits(model, IDS)).max() < 1e-5


def test_attention_sees_the_tokens_to_the_right(model):
    with torch.no_grad():
        first, second = model(torch.tensor([IDS, [*IDS[:-1], 7]]))[:, 0]
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("left", [1, 5])
def test_a_left_padded_row_equals_the_row_alone(model, left):
    padded = torch.tensor([[13] * left + IDS])
    attention_mask = torch.tensor([[0] * left + [1] * len(IDS)])
    with torch.no_grad():
        difference = model(padded, attention_mask)[0, left:] - model(torch.tensor([IDS]))[0]
    assert difference.abs().max() < 1e-5


def test_what_stands_in_the_padding_does_not_matter(model):
    rows = torch.tensor([[3, 3, *IDS], [17, 8, *IDS]])
    attention_mask = torch.tensor([[0, 0] + [1] * len(IDS)] * 2)
    with torch.no_grad():
        first, second = model(rows, attention_mask)[:, 2:]
    assert torch.equal(first, second)


def test_given_position_ids_replace_the_counted_ones(model):
    # RoPE is relative: moving every position by 7 changes nothing, stretching them does.
    ids, positions = torch.tensor([IDS]), torch.arange(len(IDS))[None]
    with torch.no_grad():
        plain, moved, stretched = (model(ids, None, p) for p in (positions, positions + 7, positions * 3))
    assert (plain - moved).abs().max() < 1e-4
    assert (plain - stretched).abs().max() > 1e-2


def test_the_head_of_the_hidden_states_is_the_forward_pass(model):
    ids = torch.tensor([IDS])
    with torch.no_grad():
        assert torch.equal(model.head(model.hidden(ids)), model(ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_stays_close_to_fp32(make_model, dtype):
    ids = torch.tensor([IDS])
    with torch.no_grad():
        wide = make_model(n_kv_heads=2)(ids)
        narrow = make_model(n_kv_heads=2).to(dtype)(ids)
    assert narrow.dtype == dtype
    assert (wide - narrow.float()).abs().mean() < 0.05 * wide.abs().mean()


def test_parameter_names_shapes_and_size_are_llada_8bs(llada_8b):
    index = json.loads((llada_8b / "model.safetensors.index.json").read_text())
    with torch.device("meta"):
        state = LLaDA(read_config(llada_8b)).state_dict()
    assert set(state) == set(index["weight_map"])
    assert sum(2 * tensor.numel() for tensor in state.values()) == index["metadata"]["total_size"]  # bf16


def test_illada_8b_has_the_size_its_authors_state():
    config = LLaDAConfig(
        d_model=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        mlp_hidden_size=14336,
        vocab_size=155136,
        max_sequence_length=8192,
        mask_token_id=5,
        eos_token_id=1,
        pad_token_id=1,
        weight_tying=True,
    )
    with torch.device("meta"):
        model = LLaDA(config)
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e9, 2) == 7.62
    assert round((count - model.model.transformer.wte.weight.numel()) / 1e9, 2) == 6.98


def test_initial_weights_depend_on_the_seed_alone(tiny_config):
    torch.manual_seed(0)
    first = initialise(LLaDA(tiny_config), 5).state_dict()
    torch.manual_seed(1)
    second = initialise(LLaDA(tiny_config), 5).state_dict()
    third = initialise(LLaDA(tiny_config), 6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], third[name]) for name in first if first[name].dim() == 2)


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("wte.weight", 0.02),
        ("blocks.1.q_proj.weight", 32**-0.5),
        ("blocks.1.attn_out.weight", 32**-0.5 / 2),  # sqrt(2 layers * 2)
        ("blocks.0.ff_out.weight", 48**-0.5 / 2),
        ("ff_out.weight", 32**-0.5),
    ],
)
def test_initial_weights_have_their_standard_deviation(tiny_config, name, deviation):
    # The narrowest matrix has 640 values: the relative error of its deviation is 1 / sqrt(1280) = 2.8 %.
    weight = initialise(LLaDA(tiny_config), 0).state_dict()[f"model.transformer.{name}"]
    assert float(weight.std()) == pytest.approx(deviation, rel=0.11)


def test_initial_norms_are_one(tiny_config):
    state = initialise(LLaDA(tiny_config), 0).state_dict()
    assert all((state[name] == 1).all() for name in state if "norm" in name or "ln_f" in name)


def test_no_two_matrices_start_equal(tiny_config):
    state = initialise(LLaDA(replace(tiny_config, mlp_hidden_size=32)), 0).state_dict()
    firsts = [float(tensor[0, 0]) / float(tensor.std()) for tensor in state.values() if tensor.dim() == 2]
    assert len({round(first, 4) for first in firsts}) == len(firsts)
