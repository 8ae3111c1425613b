"""The architectures that can be loaded, by the ``model_type`` of their ``config.json``."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d1ray.config.errors import ModelError
from d1ray.models.adapter_folder import base_folder
from d1ray.models.config import DiffusionConfig
from d1ray.models.dream import Dream
from d1ray.models.dream_config import DreamConfig
from d1ray.models.hub import TEXT_FILES, is_adapter_folder, model_folder
from d1ray.models.llada import LLaDA
from d1ray.models.llada_config import LLaDAConfig
from d1ray.models.model import DiffusionLM


@dataclass(frozen=True)
class Architecture:
    """How a network is built, and how its configuration is read and written.

    Attributes:
        embedding, head: names of the parameters that tied weights share.
    """

    build: Callable[[Any], DiffusionLM]
    read: Callable[[Mapping[str, Any]], DiffusionConfig]
    embedding: str
    head: str


ARCHITECTURES = {
    "llada": Architecture(
        LLaDA,
        LLaDAConfig.from_json,
        embedding="model.transformer.wte.weight",
        head="model.transformer.ff_out.weight",
    ),
    "Dream": Architecture(
        Dream, DreamConfig.from_json, embedding="model.embed_tokens.weight", head="lm_head.weight"
    ),
}


def read_config(source: Path | str) -> DiffusionConfig:
    """Reads the ``config.json`` of a model folder or hub model; of a PEFT adapter, of the model it names.

    Raises:
        ModelError: no folder, no readable ``config.json``, another architecture, or a missing or
            contradictory field.
    """
    folder = model_folder(source, TEXT_FILES)
    if is_adapter_folder(folder):
        folder = base_folder(folder, TEXT_FILES)
    return configuration(folder)[1]


def config_values(folder: Path) -> dict[str, Any]:
    """The entries of a folder's ``config.json``.

    Raises:
        ModelError: there is none, or it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} is not a model folder: it holds no config.json")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds no JSON object")
    return values


def configuration(folder: Path) -> tuple[Architecture, Any]:
    """The architecture and configuration of a folder; raises as ``read_config``."""
    values = config_values(folder)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        supported = ", ".join(repr(name) for name in ARCHITECTURES)
        raise ModelError(f"{folder / 'config.json'}: model_type is {kind!r}; supported: {supported}")
    architecture = ARCHITECTURES[kind]
    try:
        return architecture, architecture.read(values)
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from error
