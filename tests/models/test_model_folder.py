"""Model folders: what was saved is loaded, and a crash while saving loses nothing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from d1ray.config.errors import ModelError
from d1ray.models.dream import Dream
from d1ray.models.dream_config import DreamConfig
from d1ray.models.initialise import initialise
from d1ray.models.load import load_model
from d1ray.models.save import save_model

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path, model):
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


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


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_without_a_type_the_config_says_which(tmp_path, model, name):
    save_model(model.to(torch.bfloat16), tmp_path / "half")
    text = (tmp_path / "half" / "config.json").read_text()
    (tmp_path / "half" / "config.json").write_text(text.replace("torch_dtype", name))
    assert {p.dtype for p in load_model(tmp_path / "half", dtype=None).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load_model(tmp_path / "half").parameters()} == {torch.float32}


def test_a_type_that_torch_does_not_have_is_refused(folder):
    text = (folder / "config.json").read_text().replace("float32", "float37")
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match="torch_dtype is 'float37'"):
        load_model(folder, dtype=None)


def test_weights_go_to_the_device_asked_for(folder):
    assert {p.device.type for p in load_model(folder, device="meta").parameters()} == {"meta"}


def test_a_loaded_model_does_not_depend_on_its_file(folder, model):
    loaded = load_model(folder)
    file = folder / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))  # in place: a mapped file would change under the model
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_tied_model_is_saved_without_a_head_and_loaded_bit_for_bit(tmp_path, make_model):
    model = make_model(weight_tying=True, embedding_size=24, n_kv_heads=2)
    save_model(model, tmp_path / "tied")
    assert "model.transformer.ff_out.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    loaded = load_model(tmp_path / "tied")
    assert loaded.config == model.config
    ids = torch.tensor([[4, 11, 5]])
    assert torch.equal(loaded(ids), model(ids))


@pytest.mark.parametrize("tied", [False, True])
def test_dream_is_saved_under_its_own_names_and_loaded_bit_for_bit(tmp_path, tied):
    config = DreamConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        vocab_size=20,
        max_position_embeddings=64,
        mask_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=tied,
    )
    model = initialise(Dream(config), 0)
    save_model(model, tmp_path / "dream", file_bytes=4000)
    loaded = load_model(tmp_path / "dream")
    assert type(loaded) is Dream
    assert loaded.config == config
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.fixture
def shards(tmp_path, model):
    """The model in files of 16 kB."""
    save_model(model, tmp_path / "shards", file_bytes=16_000)
    return tmp_path / "shards"


def test_a_large_model_becomes_several_files_and_an_index(shards, model):
    index = json.loads((shards / INDEX).read_text())
    files = sorted(path.name for path in shards.glob("*.safetensors"))
    assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 2
    assert max((shards / file).stat().st_size for file in files) < 16_000 + 2_000  # and a header
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.state_dict().values())
    assert {name: index["weight_map"][name] for name in model.state_dict()} == index["weight_map"]
    assert all(name in load_file(shards / file) for name, file in index["weight_map"].items())


def test_shards_are_loaded_as_one_model(shards, model):
    loaded = load_model(shards).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_shards_without_an_index_are_loaded_too(shards, model):
    (shards / INDEX).unlink()
    loaded = load_model(shards).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_only_the_files_that_the_index_names_are_read(shards, model):
    (shards / "adapter_model.safetensors").write_bytes(b"of something else")
    loaded = load_model(shards).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_saving_again_replaces_the_folder_and_leaves_nothing_else(folder, make_model):
    (folder / "stale.txt").write_text("old")
    other = make_model(1)
    save_model(other, folder)
    assert torch.equal(load_model(folder).model.transformer.wte.weight, other.model.transformer.wte.weight)
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_saving_never_takes_the_place_of_other_files(tmp_path, model):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "thesis.txt").write_text("mine")
    with pytest.raises(ModelError, match=r"project holds files but no model \(found 'thesis\.txt'\)"):
        save_model(model, tmp_path / "project")
    with pytest.raises(ModelError, match="is a file; name a folder"):
        save_model(model, tmp_path / "project" / "thesis.txt")
    assert (tmp_path / "project" / "thesis.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.rglob("*")] == ["project", "thesis.txt"]


def test_an_empty_folder_or_an_adapters_is_a_place_for_a_model(tmp_path, model):
    for name in ("empty", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for name in ("empty", "adapter"):
        save_model(model, tmp_path / name)
        assert load_model(tmp_path / name).config == model.config
    assert not (tmp_path / "adapter" / "adapter_config.json").exists()


def test_a_crash_while_saving_leaves_the_old_folder(folder, model, make_model, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("d1ray.models.save.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_model(make_model(1), folder)
    assert torch.equal(load_model(folder).model.transformer.wte.weight, model.model.transformer.wte.weight)


def test_a_copied_folder_is_the_same_model(folder, tmp_path, model):
    shutil.copytree(folder, tmp_path / "elsewhere")
    loaded = load_model(tmp_path / "elsewhere")
    assert torch.equal(loaded.model.transformer.ff_out.weight, model.model.transformer.ff_out.weight)


def test_weights_can_be_read_by_whoever_reads_the_config(shards):
    assert len({path.stat().st_mode for path in shards.iterdir()}) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(make_model, tmp_path, value):
    # Attention on a CPU can turn NaN queries into finite logits: nothing after this would tell.
    model = make_model()
    with torch.no_grad():
        model.model.transformer.blocks[1].q_proj.weight[0, 0] = value
    save_model(model, tmp_path / "model")
    with pytest.raises(ModelError, match=r"blocks\.1\.q_proj\.weight holds NaN or infinite values"):
        load_model(tmp_path / "model")
