"""ServeConfig: every setting of `d1ray serve` and of the application in a Ray Serve config file."""

from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from d1ray.config.errors import ConfigError
from d1ray.config.recipe import apply_overrides, validated_as
from d1ray.config.sampling import DecodingName, SamplerConfig
from d1ray.config.settings import AbsolutePath, LocalOrHub, PositiveInt, Probability, Strict


class ReplicasConfig(Strict):
    """Copies of the model: Ray Serve starts and ends them as requests come and go."""

    min: PositiveInt = 1
    max: PositiveInt = Field(1, description="so many under load")
    gpus: NonNegativeFloat = Field(0, description="of each; with 0 it runs on the CPU")
    cpus: NonNegativeFloat = 1
    ongoing: PositiveInt = Field(16, description="requests in a replica that another is started for")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"replicas.min={self.min} is more than replicas.max={self.max}")
        return self


class LimitsConfig(Strict):
    """What one client may ask, and what one replica takes on."""

    max_tokens: PositiveInt = Field(1024, description="of a completion")
    prompt_tokens: PositiveInt = Field(4096, description="of a prompt")
    choices: PositiveInt = Field(16, description="completions of a request, prompts times n")
    stop: PositiveInt = Field(4, description="stop strings")
    body_bytes: PositiveInt = Field(2**20, description="of a request's body")
    body_s: PositiveFloat = Field(20.0, description="seconds in which a body must have come")
    rows: PositiveInt = Field(256, description="completions in a replica, waiting ones included; then 429")
    batch_tokens: PositiveInt = Field(
        16384, description="columns (prompt, completion, padding) that are denoised together"
    )


class ServedSamplerConfig(SamplerConfig):
    """What requests that say nothing else get: greedy, and as many tokens a step as the model is sure of."""

    temperature: NonNegativeFloat = Field(0.0, description="0 is greedy")
    decoding: DecodingName = Field("threshold", description="which positions a denoising step commits")
    threshold: Probability = Field(0.95, description="least confidence that `threshold` commits")

    @model_validator(mode="after")
    def _no_guidance(self) -> Self:
        if self.cfg_scale:
            raise ValueError(f"sampling.cfg_scale={self.cfg_scale}: guidance is not served; leave it at 0")
        return self


class ServeConfig(Strict):
    """The served model, who may use it, and how much of it."""

    model: LocalOrHub = Field(description="a model folder, checkpoint, run folder or hub id")
    name: str | None = Field(None, min_length=1, description="what requests call it; default: the folder's")
    precision: Literal["fp32", "bf16"] = "fp32"
    exact: bool | None = Field(
        None,
        description="a completion is the same, bit for bit, whatever it is batched with; null: where that "
        "costs little, on the CPU; see docs/serving.md",
    )
    follow: bool = Field(
        False, description="`model` is a run: serve its newest checkpoint, whenever there is one"
    )
    follow_every_s: PositiveFloat = 5.0
    host: str = Field(
        "127.0.0.1", description="address to listen on; another than loopback needs api_key_file"
    )
    port: int = Field(8000, ge=1, le=65535)
    api_key_file: AbsolutePath | None = Field(None, description="keys, a line each; any of them will do")
    cors_origins: tuple[str, ...] = Field((), description="other sites whose pages may call the API")
    threads: PositiveInt = Field(1, description="of torch, in each replica on the CPU")
    replicas: ReplicasConfig = ReplicasConfig()
    limits: LimitsConfig = LimitsConfig()
    sampling: ServedSamplerConfig = ServedSamplerConfig()

    @model_validator(mode="after")
    def _closed_to_strangers(self) -> Self:
        if self.api_key_file is None and not is_loopback(self.host):
            raise ValueError(
                f"host={self.host} lets other machines in, and no key is asked for; give api_key_file, or "
                "leave host at 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _one_thread_where_exact(self) -> Self:
        if self.exact and self.threads > 1 and not self.replicas.gpus:
            raise ValueError(
                f"threads={self.threads} share the work by its size, and round otherwise with every batch; "
                "leave exact out, or threads at 1"
            )
        return self

    @property
    def served_name(self) -> str:
        """What requests call the model."""
        return self.name or self.model.name


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on ``host``."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_keys(file: Path | None) -> tuple[bytes, ...]:
    """The keys of a file, a line each; blank lines and those that begin with # are left out.

    Raises:
        ConfigError: the file cannot be read, or holds no key.
    """
    if file is None:
        return ()
    try:
        lines = [line.strip() for line in file.read_bytes().splitlines()]
    except OSError as error:
        raise ConfigError(f"api_key_file={file} cannot be read: {error.strerror}") from error
    keys = tuple(line for line in lines if line and not line.startswith(b"#"))
    if not keys:
        raise ConfigError(f"api_key_file={file} holds no key; write one a line")
    return keys


def serve_config(
    model: Path, overrides: list[str], replicas: str | None = None, **options: Any
) -> ServeConfig:
    """The settings: ``options`` that are given, and ``overrides`` on top.

    Args:
        replicas: ``MIN:MAX``, or how many.

    Raises:
        ConfigError: a line that names what is wrong.
    """
    given = {"model": model, "replicas": replicas and _range(replicas), **options}
    values = {name: value for name, value in given.items() if value is not None}
    return validated_as(ServeConfig, apply_overrides(values, overrides))


def _range(text: str) -> dict[str, int]:
    """``2:6``, or ``2`` for just so many."""
    least, colon, most = text.partition(":")
    try:
        return {"min": int(least), "max": int(most if colon else least)}
    except ValueError as error:
        raise ConfigError(f"--replicas {text}: expected MIN:MAX, e.g. 1:4") from error
