"""Saving a model as a Hugging Face folder that the original code and ``load_model`` read."""

import json
import os
import shutil
from pathlib import Path

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from d1ray.config.errors import ModelError
from d1ray.models.hub import ADAPTER_CONFIG
from d1ray.models.load import INDEX
from d1ray.models.lora import has_lora
from d1ray.models.model import DiffusionLM
from d1ray.models.tokenizer import save_tokenizer

FILE_BYTES = 5_000_000_000


def save_model(
    model: DiffusionLM,
    folder: Path | str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Writes ``config.json`` with the original's field names, the weights and the tokenizer.

    The folder appears whole or not at all. An existing model folder is replaced whole: nothing in it
    stays, so without ``tokenizer`` its tokenizer is gone as well.

    Args:
        file_bytes: the largest weights file; a larger model becomes several files and an index. Of a
            model on a GPU, one file's tensors at a time are copied to the host.

    Raises:
        ModelError: the model has adapters; or ``folder`` is a file, or holds files but no model.
    """
    final = Path(folder)
    if has_lora(model):
        raise ModelError(
            f"{final}: the model has adapters; write one with save_adapter, or the merged model with "
            "save_model(unadapted(model), ...)"
        )
    _check_replaceable(final)
    folder = final.with_name(f".{final.name}.writing")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_config(model, folder)
    state = model.state_dict()
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=file_bytes
    )
    for file, names in split.filename_to_tensors.items():
        tensors = {name: state[name].detach().cpu().contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", folder / file)  # safetensors keeps others from reading it
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(folder, final)


def save_config(model: DiffusionLM, folder: Path) -> None:
    """Writes ``config.json``."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    config = {**model.config.to_json(), "torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder} is a file; name a folder for the model")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names and not names & {"config.json", ADAPTER_CONFIG}:
        raise ModelError(
            f"{folder} holds files but no model (found {min(names)!r}), and saving would replace them; "
            "name a new folder, an empty one or a model's"
        )
