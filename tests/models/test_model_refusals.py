"""Weights that do not fit, are damaged, missing or pickled: each is refused by name."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from d1ray.config.errors import ModelError
from d1ray.models.load import check_weights, load_model
from d1ray.models.save import save_model

INDEX = "model.safetensors.index.json"
HEAD, EMBEDDING = "model.transformer.ff_out.weight", "model.transformer.wte.weight"


@pytest.fixture
def folder(tmp_path, model):
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path, model):
    """The model in files of 16 kB."""
    save_model(model, tmp_path / "shards", file_bytes=16_000)
    return tmp_path / "shards"


def edit_weights(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def remove_head(tensors):
    del tensors[HEAD]


def add_bias(tensors):
    tensors["model.transformer.blocks.0.q_proj.bias"] = torch.zeros(32)


def narrow_embedding(tensors):
    tensors[EMBEDDING] = tensors[EMBEDDING][:19].clone()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (remove_head, r"missing: model\.transformer\.ff_out\.weight$"),
        (add_bias, r"unexpected: model\.transformer\.blocks\.0\.q_proj\.bias$"),
        (
            narrow_embedding,
            r"of another shape: model\.transformer\.wte\.weight \[19, 32\] instead of \[20, 32\]$",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_listed(folder, edit, message):
    edit_weights(folder, edit)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_a_long_list_of_names_is_cut(folder, make_model):
    edit_weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".blocks." in name])
    with pytest.raises(ModelError, match=r"missing: (model\S+, ){7}model\S+ and 10 more$"):
        load_model(folder)


def test_weights_stored_as_integers_are_refused(folder):
    edit_weights(folder, lambda tensors: tensors.update({HEAD: tensors[HEAD].to(torch.int8)}))
    with pytest.raises(ModelError, match=r"ff_out\.weight is stored as I8"):
        load_model(folder)


def tie(folder):
    config = json.loads((folder / "config.json").read_text()) | {"weight_tying": True}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_tied_head_that_was_stored_all_the_same_is_accepted(folder, model):
    edit_weights(folder, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    tie(folder)
    loaded = load_model(folder)
    assert HEAD not in loaded.state_dict()
    assert torch.equal(loaded.model.transformer.wte.weight, model.model.transformer.wte.weight)


def test_a_tied_head_that_differs_from_the_embedding_is_refused(folder):
    tie(folder)
    with pytest.raises(ModelError, match=r"different model\.transformer\.ff_out\.weight"):
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


class Trap:
    """Unpickling it would end the test run."""

    def __reduce__(self):
        return exit, (1,)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "a.pth"]
)
def test_pickled_weights_are_refused_and_not_read(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelError, match=rf"only pickled weights \({name}\).*safetensors"):
        load_model(folder)


def test_pickles_beside_safetensors_are_ignored(folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    load_model(folder)


def test_a_missing_shard_is_named(shards):
    (victim := sorted(shards.glob("*.safetensors"))[1]).unlink()
    with pytest.raises(ModelError, match=rf"names files that are not there: {victim.name}; copy"):
        check_weights(shards)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": {}}'])
def test_an_index_that_is_none_is_refused(shards, text):
    (shards / INDEX).write_text(text)
    with pytest.raises(ModelError, match=r"index\.json"):
        load_model(shards)


def test_an_index_cannot_lead_out_of_the_folder(shards, tmp_path):
    file = sorted(shards.glob("*.safetensors"))[0]
    file.rename(tmp_path / file.name)
    (shards / INDEX).write_text((shards / INDEX).read_text().replace(file.name, f"../{file.name}"))
    with pytest.raises(ModelError, match="not there"):
        load_model(shards)
