"""Model folders: what was saved is loaded, and whatever is wrong with a folder is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from d1ray.errors import ModelError
from d1ray.models import load_model, read_config, save_model


@pytest.fixture
def folder(tmp_path, model):
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def edit_weights(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_saved_model_is_loaded_bit_for_bit(folder, model):
    loaded = load_model(folder)
    assert loaded.config == model.config
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_loaded_model_is_ready_to_use_and_to_train(folder):
    loaded = load_model(folder)
    assert not loaded.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())


def test_grouped_query_heads_survive_the_round_trip(tmp_path, make_model):
    model = make_model(n_kv_heads=2)
    save_model(model, tmp_path / "gqa")
    assert load_model(tmp_path / "gqa").config.n_kv_heads == 2


def test_weights_are_loaded_in_the_type_asked_for(folder, model):
    loaded = load_model(folder, torch.bfloat16).state_dict()
    assert all(torch.equal(loaded[n], tensor.to(torch.bfloat16)) for n, tensor in model.state_dict().items())


def test_shards_are_loaded_as_one_model(folder, model):
    state = model.state_dict()
    names = sorted(state)
    (folder / "model.safetensors").unlink()
    for number, part in enumerate((names[:7], names[7:]), 1):
        save_file({n: state[n] for n in part}, folder / f"model-0000{number}-of-00002.safetensors")
    assert all(torch.equal(load_model(folder).state_dict()[name], state[name]) for name in state)


def test_saving_again_replaces_the_folder_and_leaves_nothing_else(folder, make_model):
    (folder / "stale.txt").write_text("old")
    other = make_model(1)
    save_model(other, folder)
    assert torch.equal(load_model(folder).model.transformer.wte.weight, other.model.transformer.wte.weight)
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_saved_folder_carries_the_original_config_names(folder, llada_8b):
    ours, theirs = (json.loads((f / "config.json").read_text()) for f in (folder, llada_8b))
    assert set(ours) <= set(theirs)
    same = ["model_type", "architectures", "block_type", "rope_theta", "rms_norm_eps", "weight_tying"]
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


def test_llada_8bs_own_config_is_read(llada_8b):
    config = read_config(llada_8b)
    assert (config.n_layers, config.d_model, config.n_heads, config.kv_heads) == (32, 4096, 32, 32)
    assert (config.mask_token_id, config.eos_token_id, config.rope_theta) == (126336, 126081, 5e5)


def remove_head(tensors):
    del tensors["model.transformer.ff_out.weight"]


def add_bias(tensors):
    tensors["model.transformer.blocks.0.q_proj.bias"] = torch.zeros(32)


def narrow_embedding(tensors):
    tensors["model.transformer.wte.weight"] = tensors["model.transformer.wte.weight"][:19].clone()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (remove_head, r"missing \['model.transformer.ff_out.weight'\], unexpected \[\]"),
        (add_bias, r"unexpected \['model.transformer.blocks.0.q_proj.bias'\]"),
        (narrow_embedding, r"of another shape \['model.transformer.wte.weight'\]"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_listed(folder, edit, message):
    edit_weights(folder, edit)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_weights_file_is_named(folder, kept):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        load_model(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        load_model(folder)


@pytest.mark.parametrize("path", ["nothing", "model"])
def test_a_folder_without_config_is_refused(folder, path):
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(folder.parent / path)


@pytest.mark.parametrize("text", ["{", "", "[]", "null"])
def test_a_config_that_is_no_json_object_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match="JSON"):
        load_model(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("model_type", "absent"),
        ("weight_tying", True),
        ("include_qkv_bias", True),
        ("activation_type", "gelu"),
        ("layer_norm_type", "default"),
        ("rope", False),
    ],
)
def test_another_architecture_is_refused_by_the_key_that_makes_it_one(folder, key, value):
    edit_config(folder, **{key: value})
    with pytest.raises(ModelError, match=key):
        load_model(folder)


@pytest.mark.parametrize("value", ["absent", None])
def test_a_missing_size_is_named(folder, value):
    edit_config(folder, mlp_hidden_size=value)
    with pytest.raises(ModelError, match="mlp_hidden_size"):
        load_model(folder)


def test_a_crash_while_saving_leaves_the_old_folder(folder, model, make_model, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("d1ray.models.folder.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_model(make_model(1), folder)
    assert torch.equal(load_model(folder).model.transformer.wte.weight, model.model.transformer.wte.weight)


def test_a_copied_folder_is_the_same_model(folder, tmp_path, model):
    shutil.copytree(folder, tmp_path / "elsewhere")
    loaded = load_model(tmp_path / "elsewhere")
    assert torch.equal(loaded.model.transformer.ff_out.weight, model.model.transformer.ff_out.weight)
