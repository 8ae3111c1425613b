"""Recipes and ``key=value`` overrides, read into a ``Config`` with errors a person can act on."""

import difflib
import importlib.resources
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from d1ray.config.errors import ConfigError
from d1ray.config.run import Config

Settings = TypeVar("Settings", bound=BaseModel)


def recipe_names() -> list[str]:
    """Names of the recipes that come with d1ray."""
    folder = importlib.resources.files("d1ray") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_config(recipe: str, overrides: Iterable[str] = ()) -> Config:
    """Builds the config of a recipe with ``key=value`` overrides.

    Args:
        recipe: a recipe's name, or the path of a YAML file.
        overrides: e.g. ``"rl.steps=10"``; keys are dotted, values are YAML.

    Raises:
        ConfigError: one line per fault, each naming the key, the fault and what would be right.

    Example:
        >>> load_config("sudoku-tiny", ["rl.steps=2"]).rl.steps
        2
    """
    values = apply_overrides(read_recipe(recipe), overrides)
    values.setdefault("run_dir", str(Path("runs") / Path(recipe).stem))
    return validated(values)


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Sets ``key=value`` overrides in nested ``values``, in place. Raises ``ConfigError``.

    ``rl.algorithm.name=wd1`` chooses another algorithm than the recipe's, whose options go with it.
    """
    for override in sorted(overrides, key=lambda o: not o.partition("=")[0].endswith(".name")):
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r} is not of the form key=value")
        try:
            _set(values, key, yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(
                f"{key}: {text!r} is not a YAML value ({' '.join(str(error).split())})"
            ) from error
    return values


def validated(values: dict[str, Any]) -> Config:
    """Checks ``values`` as a config. Raises ``ConfigError`` naming every fault, in one line."""
    return validated_as(Config, values)


def validated_as(kind: type[Settings], values: dict[str, Any]) -> Settings:
    """Checks ``values`` as any group of settings. Raises ``ConfigError``, as ``validated``."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(fault, kind) for fault in error.errors())) from error


def read_recipe(recipe: str) -> dict[str, Any]:
    """What a recipe says, unchecked. Raises ``ConfigError``."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"recipe file {recipe} does not exist")
        text = path.read_text()
    elif recipe in recipe_names():
        text = (importlib.resources.files("d1ray") / "recipes" / f"{recipe}.yaml").read_text()
    else:
        raise ConfigError(
            f"unknown recipe {recipe!r}{_suggestion(recipe, recipe_names())}; "
            f"known recipes: {', '.join(recipe_names())} (or give a .yaml file)"
        )
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {recipe} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {recipe} is not a mapping of settings")
    return values


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        child = values.get(name)
        if isinstance(child, list):
            raise ConfigError(f"{key}: lists are replaced whole, e.g. {name}=[...]")
        if isinstance(child, str):
            child = {"name": child}  # `rl.algorithm=wd1 rl.algorithm.psi=2`
        if not isinstance(child, dict | None):
            raise ConfigError(f"{key}: {name} is a value, not a group of settings")
        values[name] = dict(child or {})  # a copy: YAML anchors make one dict of several groups
        values = values[name]
    if last == "name" and values.get("name", value) != value:
        values.clear()
    values[last] = value


def _explain(fault: Any, kind: type[BaseModel]) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        siblings = _fields_at(kind, location[:-1])
        return f"unknown key {key}{_suggestion(location[-1], siblings)}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error" and _begins_with_key(message, location):
        return ".".join([*location[:-1], message])  # written by d1ray.config.registry, with the key
    found = "" if isinstance(fault["input"], dict | BaseModel) else f" (got {fault['input']!r})"
    return f"{key}: {message}{found}" if key else f"{message}{found}"


def _begins_with_key(message: str, location: list[str]) -> bool:
    return bool(location) and message.startswith((f"{location[-1]}.", f"{location[-1]}:"))


def _fields_at(kind: type[BaseModel], location: list[str]) -> list[str]:
    """Field names of the group at ``location`` in the settings ``kind``, [] if it is none."""
    group: Any = kind
    for name in location:
        if name.isdigit():
            continue
        annotation = group.model_fields[name].annotation if name in group.model_fields else None
        group = next((t for t in _types_in(annotation) if issubclass(t, BaseModel)), None)
        if group is None:
            return []
    return list(group.model_fields)


def _types_in(annotation: Any) -> list[type]:
    arguments = getattr(annotation, "__args__", ())
    return [annotation] if isinstance(annotation, type) else [t for a in arguments for t in _types_in(a)]


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
