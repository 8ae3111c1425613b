"""`d1ray serve`'s command line."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from d1ray.config.errors import ConfigError
from d1ray.config.recipe import apply_overrides, validated_as
from d1ray.serving.config import ServeConfig


def serve(
    model: Annotated[Path, typer.Argument(help="a model folder, checkpoint, run folder or hub id")],
    port: Annotated[int | None, typer.Option(help="8000 by default")] = None,
    host: Annotated[str | None, typer.Option(help="127.0.0.1 by default; others need keys")] = None,
    replicas: Annotated[str | None, typer.Option(metavar="MIN:MAX", help="copies of the model")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="keys of the API, a line each")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="serve a run's newest checkpoint, always")] = False,
    local: Annotated[bool, typer.Option("--local", help="in this process alone, without Ray")] = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings as key=value, e.g. limits.max_tokens=512")
    ] = None,
) -> None:
    """Serve a model by OpenAI's API, with a page to watch it denoise."""
    config = serve_config(
        model,
        overrides or [],
        port=port,
        host=host,
        replicas=None if replicas is None else _range(replicas),
        api_key_file=api_key_file,
        follow=follow or None,
    )
    if local:
        from d1ray.serving.local import run as serve_here

        serve_here(config)
        return
    if "RAY_ADDRESS" not in os.environ:  # before Ray is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from d1ray.programs.serve import run

    run(config)


def serve_config(model: Path, overrides: list[str], **options: Any) -> ServeConfig:
    """The settings: ``options`` that are given, and ``overrides`` on top.

    Raises:
        ConfigError: a line that names what is wrong.
    """
    values = {"model": model} | {name: value for name, value in options.items() if value is not None}
    return validated_as(ServeConfig, apply_overrides(values, overrides))


def _range(text: str) -> dict[str, int]:
    """``2:6``, or ``2`` for just so many."""
    least, colon, most = text.partition(":")
    try:
        return {"min": int(least), "max": int(most if colon else least)}
    except ValueError as error:
        raise ConfigError(f"--replicas {text}: expected MIN:MAX, e.g. 1:4") from error
