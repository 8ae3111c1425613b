"""config.json: the original's fields are read with the original's meaning and written back."""

import json
from pathlib import Path

import pytest
import torch

from d1ray.config.errors import ModelError
from d1ray.models.architectures import read_config
from d1ray.models.dream import Dream
from d1ray.models.dream_config import DreamConfig
from d1ray.models.llada_config import LLaDAConfig
from d1ray.models.load import load_model
from d1ray.models.save import save_model

MODELS = Path(__file__).parents[3] / "shared" / "models"
LLADA = {
    "model_type": "llada",
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "mlp_hidden_size": 48,
    "vocab_size": 20,
    "max_sequence_length": 64,
    "mask_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
DREAM = {
    "model_type": "Dream",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 20,
    "max_position_embeddings": 64,
    "mask_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


@pytest.fixture
def read(tmp_path):
    """``read(values, changes)``: the configuration of a folder with that config.json."""

    def read(values, **changes):
        values = {key: value for key, value in (values | changes).items() if value != "absent"}
        (tmp_path / "config.json").write_text(json.dumps(values))
        return read_config(tmp_path)

    return read


def original(name):
    if not (MODELS / name).is_dir():
        pytest.skip(f"the original config is not in {MODELS}")
    return json.loads((MODELS / name / "config.json").read_text())


def test_llada_8bs_own_config_is_read(read):
    config = read(original("llada-8b"))
    assert (config.n_layers, config.d_model, config.n_heads, config.kv_heads) == (32, 4096, 32, 32)
    assert (config.mlp_hidden_size, config.embeddings, config.max_sequence_length) == (12288, 126464, 4096)
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (126336, 126081, 126081)
    assert (config.rope_theta, config.rms_norm_eps, config.tied) == (5e5, 1e-5, False)


@pytest.mark.parametrize("name", ["llada-8b", "dream-7b"])
def test_a_config_without_a_rotary_base_means_the_original_classes_default(read, name):
    assert read(original(name), rope_theta="absent").rope_theta == 10_000


def test_dream_7bs_own_config_is_read(read):
    config = read(original("dream-7b"))
    assert (config.n_layers, config.width, config.heads, config.kv_heads) == (28, 3584, 28, 4)
    assert (config.intermediate_size, config.embeddings, config.max_sequence_length) == (
        18944,
        152064,
        131072,
    )
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (151666, 151643, 151643)
    assert (config.rope_theta, config.rms_norm_eps, config.tied) == (1e6, 1e-6, False)


@pytest.mark.parametrize(
    ("name", "config_class", "left_out"),
    [
        ("llada-8b", LLaDAConfig, {"auto_map", "torch_dtype", "transformers_version"}),
        (
            "dream-7b",
            DreamConfig,
            {"_name_or_path", "attn_implementation", "auto_map", "torch_dtype", "transformers_version"},
        ),
    ],
)
def test_what_is_written_for_the_original_model_is_the_original_config(name, config_class, left_out):
    theirs = original(name)
    ours = config_class.from_json(theirs).to_json()
    assert ours == {key: value for key, value in theirs.items() if key not in left_out}


def test_the_type_of_the_weights_is_written(tmp_path, model):
    for dtype in (torch.bfloat16, torch.float32):
        save_model(model.to(dtype), tmp_path / "model")
        written = json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"]
        assert f"torch.{written}" == str(dtype)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"n_kv_heads": None}, "kv_heads", 4),
        ({"n_kv_heads": 2}, "kv_heads", 2),
        ({"n_kv_heads": None, "multi_query_attention": True}, "kv_heads", 1),
        ({"mlp_hidden_size": None, "mlp_ratio": 3}, "mlp_hidden_size", 96),
        ({"mlp_hidden_size": "absent"}, "mlp_hidden_size", 128),
        ({"pad_token_id": None, "eos_token_id": 7}, "pad_token_id", 7),
        ({"embedding_size": None}, "embeddings", 20),
        ({"embedding_size": 24}, "embeddings", 24),
        ({"weight_tying": True}, "tied", True),
        ({"bias_for_layer_norm": None, "include_qkv_bias": None}, "tied", False),
    ],
)
def test_what_llada_may_leave_null_has_the_originals_meaning(read, changes, field, value):
    assert getattr(read(LLADA, **changes), field) == value


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"num_key_value_heads": None}, "kv_heads", 4),
        ({"pad_token_id": None, "eos_token_id": 7}, "pad_token_id", 7),
        ({"tie_word_embeddings": True}, "tied", True),
        ({"sliding_window": 4096}, "kv_heads", 2),  # not used unless use_sliding_window
    ],
)
def test_what_dream_may_leave_null_has_the_originals_meaning(read, changes, field, value):
    assert getattr(read(DREAM, **changes), field) == value


@pytest.mark.parametrize("kind", ["llama", "dream", "absent", None, 3, ["llada"]])
def test_another_architecture_is_refused_with_those_that_are_supported(read, kind):
    with pytest.raises(ModelError, match=r"model_type is .*; supported: 'llada', 'Dream'"):
        read(LLADA, model_type=kind)


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        (LLADA, {"include_qkv_bias": True}, "include_qkv_bias is True; supported: False"),
        (LLADA, {"activation_type": "gelu"}, "activation_type"),
        (LLADA, {"layer_norm_type": "default"}, "layer_norm_type"),
        (LLADA, {"block_type": "sequential"}, "block_type"),
        (LLADA, {"block_group_size": 2}, "block_group_size"),
        (LLADA, {"rope": False}, "rope is False"),
        (LLADA, {"scale_logits": True}, "scale_logits"),
        (LLADA, {"d_model": "absent"}, "d_model"),
        (LLADA, {"mask_token_id": None}, "mask_token_id"),
        (LLADA, {"n_layers": "two"}, "n_layers"),
        (LLADA, {"n_layers": 2.5}, "n_layers"),
        (LLADA, {"n_layers": 0}, "n_layers is 0"),
        (LLADA, {"n_heads": 0}, "heads is 0"),
        (LLADA, {"n_heads": 3}, "32 cannot be split into 3 heads"),
        (LLADA, {"n_heads": 32}, "32 cannot be split into 32 heads of even size"),
        (LLADA, {"n_kv_heads": 3}, "4 heads cannot share 3 key heads"),
        (LLADA, {"mask_token_id": 20}, "mask_token_id 20 is outside the vocabulary of 20"),
        (LLADA, {"eos_token_id": -1}, "eos_token_id -1 is outside"),
        (DREAM, {"hidden_act": "gelu"}, "hidden_act"),
        (DREAM, {"use_sliding_window": True}, "use_sliding_window"),
        (DREAM, {"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling"),
        (DREAM, {"hidden_size": None}, "hidden_size"),
        (DREAM, {"num_key_value_heads": 3}, "4 heads cannot share 3 key heads"),
        (DREAM, {"mask_token_id": 20}, "mask_token_id 20 is outside the vocabulary of 20"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_by_what_makes_it_one(read, values, changes, message):
    with pytest.raises(ModelError, match=rf"config\.json: .*({message})"):
        read(values, **changes)


@pytest.mark.parametrize("text", ["{", "", "[]", "null", "\xff"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match="JSON"):
        load_model(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"not a model folder: it holds no config\.json"):
        load_model(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="nothing is not there"):
        load_model(tmp_path / "nothing")


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="is a file; give the model folder"):
        load_model(tmp_path / "model.safetensors")


def test_a_config_read_builds_its_network(read):
    model = Dream(read(DREAM))
    assert model.model.layers[1].self_attn.k_proj.weight.shape == (16, 32)
