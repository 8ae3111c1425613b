"""Tokenizers of model folders, loaded from their files alone and saved so that older readers cope."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer

from d1ray.config.errors import ModelError
from d1ray.models.architectures import config_values
from d1ray.models.hub import TEXT_FILES, model_folder

CONFIG = "tokenizer_config.json"


def load_tokenizer(source: Path | str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model folder or hub model; it always has a mask token.

    LLaDA's tokenizer names no mask token: it gets the one ``config.json`` numbers. Dream's asks for
    remote code, which is not run: its vocabulary and merges are those of Qwen2's tokenizer.

    Raises:
        ModelError: there are no tokenizer files or they cannot be read, no mask token is named, it is
            outside the vocabulary, or tokenizer and ``config.json`` disagree about it.
    """
    folder = model_folder(source, TEXT_FILES)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} holds no {CONFIG}; copy the tokenizer files beside the model")
    if (folder / "tokenizer.json").is_file():
        kind = PreTrainedTokenizerFast
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        kind = Qwen2Tokenizer
    else:
        raise ModelError(
            f"{folder} holds neither tokenizer.json nor vocab.json and merges.txt; "
            "copy the tokenizer files beside the model"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the Rust tokenizers raise nothing more specific
        raise ModelError(f"{folder}: the tokenizer cannot be read: {error}; copy its files again") from error
    _set_mask_token(tokenizer, folder)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the tokenizer's files, in terms that transformers 4, which the original code needs, knows."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / CONFIG
    config = json.loads(path.read_text())
    for key in ("auto_map", "backend", "is_local", "local_files_only"):
        config.pop(key, None)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _set_mask_token(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Gives the tokenizer the mask token of ``config.json``, where it has none of its own."""
    path = folder / "config.json"
    number = _mask_token_id(path)
    if number is None:
        if tokenizer.mask_token is None:
            raise ModelError(
                f"{folder} names no mask token: set mask_token_id in config.json or mask_token in {CONFIG}"
            )
        return
    token = tokenizer.convert_ids_to_tokens(number) if 0 <= number < len(tokenizer) else None
    if token is None:
        raise ModelError(
            f"{path}: mask_token_id {number} is outside the tokenizer's vocabulary of {len(tokenizer)}"
        )
    if tokenizer.mask_token is None:
        tokenizer.mask_token = token
    elif tokenizer.mask_token_id != number:
        raise ModelError(
            f"{path}: mask_token_id is {number} ({token!r}), but the tokenizer's mask token is "
            f"{tokenizer.mask_token_id} ({tokenizer.mask_token!r}); make them agree"
        )


def _mask_token_id(path: Path) -> int | None:
    """``mask_token_id`` of a ``config.json``; None if it names none, or if there is no such file."""
    if not path.is_file():
        return None
    number = config_values(path.parent).get("mask_token_id")
    if number is not None and not isinstance(number, int):
        raise ModelError(f"{path}: mask_token_id is {number!r}; expected an integer")
    return number
