"""Every setting and its one default, as strict pydantic models; YAML recipes and ``key=value`` overrides.

The defaults are d1's published hyper-parameters (arXiv 2504.12216, Section 4 and Appendix B).
"""

import difflib
import importlib.resources
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from d1ray.errors import ConfigError
from d1ray.tasks import Task, load_task
from d1ray.tasks.task import DemonstrationStyle

# Whole numbers are strict: YAML reads `yes` as true, which pydantic would take for 1. Real numbers are not:
# YAML reads 1e-4 as a string.
PositiveInt = Annotated[int, Field(strict=True, gt=0)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
MomentumDecay = Annotated[float, Field(ge=0, lt=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SamplerConfig(Strict):
    """How completions are denoised (LLaDA, arXiv 2502.09992, Algorithm 5; Fast-dLLM for ``threshold``)."""

    gen_length: PositiveInt = Field(256, description="completion length in tokens")
    steps: PositiveInt = Field(128, description="denoising steps of the fixed schedule")
    block_length: PositiveInt = Field(32, description="semi-autoregressive block, in tokens")
    temperature: NonNegativeFloat = Field(0.9, description="0 is greedy")
    decoding: Literal["low_confidence", "threshold"] = Field(
        "low_confidence", description="which positions a denoising step commits"
    )
    threshold: Probability = Field(0.9, description="confidence above which `threshold` commits")

    @model_validator(mode="after")
    def _blocks_divide(self) -> Self:
        if self.gen_length % self.block_length:
            raise ValueError(
                f"block_length={self.block_length} does not divide gen_length={self.gen_length}; "
                f"choose a block_length that does"
            )
        blocks = self.gen_length // self.block_length
        if self.steps % blocks or self.steps > self.gen_length:
            raise ValueError(
                f"steps={self.steps} must be a multiple of the {blocks} block(s) of "
                f"gen_length={self.gen_length} and at most gen_length"
            )
        return self


class OptimizerConfig(Strict):
    """AdamW with warm-up, then a constant or linearly decaying learning rate."""

    learning_rate: PositiveFloat = 3e-6
    schedule: Literal["constant", "linear"] = "constant"
    warmup_updates: NonNegativeInt = 0
    final_ratio: Probability = Field(0.0, description="last learning rate over the peak, for `linear`")
    betas: tuple[MomentumDecay, MomentumDecay] = (0.9, 0.99)
    weight_decay: NonNegativeFloat = 0.1
    max_grad_norm: PositiveFloat = 0.2


class MaskedTrainingOptimizerConfig(OptimizerConfig):
    """d1's SFT optimiser where it differs from its RL one."""

    learning_rate: PositiveFloat = 1e-5
    max_grad_norm: PositiveFloat = 1.0


class MaskedTrainingConfig(Strict):
    """Masked-diffusion training on demonstrations: pre-training phases and SFT."""

    demonstrations: DemonstrationStyle = "clean"
    examples: PositiveInt | None = Field(
        None, description="distinct demonstrations; null: unlimited fresh ones"
    )
    steps: PositiveInt = 1000
    batch_size: PositiveInt = 64
    eps: float = Field(1e-3, gt=0, le=1, description="smallest masking probability t")
    optimizer: MaskedTrainingOptimizerConfig = MaskedTrainingOptimizerConfig()


class ArchitectureConfig(Strict):
    """A LLaDA architecture to make from scratch."""

    d_model: PositiveInt = 128
    n_layers: PositiveInt = 4
    n_heads: PositiveInt = 4
    mlp_hidden_size: PositiveInt = 384
    max_sequence_length: PositiveInt = 256
    rope_theta: PositiveFloat = 500_000.0
    pretraining: tuple[MaskedTrainingConfig, ...] = ()

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"n_heads={self.n_heads} must split d_model={self.d_model} into heads of even size (RoPE)"
            )
        return self


class ModelConfig(Strict):
    """Where the model comes from: an existing Hugging Face folder, or an architecture to make."""

    path: Path | None = None
    make: ArchitectureConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.make is None):
            raise ValueError("set exactly one of model.path (a folder) and model.make (an architecture)")
        return self


class DataConfig(Strict):
    """Where examples come from: the task's generator, or Parquet/JSONL files."""

    path: Path | None = Field(None, description="file, or folder with train.* and test.*; null: generated")
    max_prompt_length: PositiveInt = Field(200, description="tokens, chat template included")
    max_completion_length: PositiveInt = Field(256, description="tokens; SFT pads completions to it with EOS")


class RLConfig(Strict):
    """diffu-GRPO (d1, Section 3 and Table 5)."""

    steps: NonNegativeInt = Field(640, description="outer steps: generate, score, mu updates, publish")
    prompts_per_step: PositiveInt = 16
    group_size: Annotated[int, Field(strict=True, ge=2)] = 6
    mu: PositiveInt = Field(12, description="inner updates per batch of rollouts")
    epsilon: PositiveFloat = Field(0.5, description="PPO clip range")
    beta: NonNegativeFloat = Field(0.04, description="weight of the k3 KL to the reference")
    prompt_mask_prob: Probability = Field(0.15, description="prompt tokens masked in the likelihood")
    mask_scope: Literal["group", "completion"] = Field(
        "group", description="one prompt mask per group (G-fold cheaper) or per completion (d1's own)"
    )
    skip_zero_advantage: bool = Field(False, description="leave groups with equal rewards out of the loss")
    reference_sync_updates: PositiveInt | None = Field(64, description="null: the reference never moves")
    staleness: NonNegativeInt = Field(0, description="0 is synchronous")
    optimizer: OptimizerConfig = OptimizerConfig()
    sampling: SamplerConfig = SamplerConfig()
    micro_batch_tokens: PositiveInt = Field(16384, description="tokens per forward/backward")
    validate_every: PositiveInt = Field(20, description="outer steps between validations")
    checkpoint_every: PositiveInt = 20
    keep_checkpoints: PositiveInt = 2


class EvaluationSamplerConfig(SamplerConfig):
    """Greedy unless asked otherwise."""

    temperature: NonNegativeFloat = Field(0.0, description="0 is greedy")


class EvaluationConfig(Strict):
    """Validation chooses the checkpoint; test only reports. Greedy, as d1 evaluates."""

    examples: PositiveInt = Field(1024, description="test examples of the final table")
    validation_examples: PositiveInt = 256
    batch_size: PositiveInt = 64
    sampling: EvaluationSamplerConfig = EvaluationSamplerConfig()


class ClusterConfig(Strict):
    """Actors and what each one holds. Logical CPUs only account; `threads` sets torch's threads."""

    address: str | None = Field(None, description="null: RAY_ADDRESS, the job's cluster, or a local one")
    generators: PositiveInt = 2
    scorers: PositiveInt = 1
    generator_cpus: NonNegativeFloat = 1
    generator_gpus: NonNegativeFloat = 0
    generator_threads: PositiveInt = 1
    scorer_cpus: NonNegativeFloat = 1
    learner_cpus: NonNegativeFloat = 1
    learner_gpus: NonNegativeFloat = 0
    learner_threads: PositiveInt = 1
    sft_workers: PositiveInt = 1
    sft_threads: PositiveInt = 1
    sft_worker_cpus: PositiveFloat = 1
    sft_worker_gpus: NonNegativeFloat = 0
    dashboard: bool = Field(False, description="start the Ray dashboard with a local cluster")
    deadline_s: PositiveFloat = Field(600, description="longest wait for any one call, in seconds")


class Config(Strict):
    """One run. ``load_config`` builds it from a recipe and overrides."""

    about: str = ""
    seed: NonNegativeInt = 0
    run_dir: Path | None = Field(None, description="null: runs/RECIPE")
    task: Annotated[SerializeAsAny[Task], BeforeValidator(load_task)]
    data: DataConfig = DataConfig()
    model: ModelConfig
    sft: MaskedTrainingConfig | None = None
    rl: RLConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _fits_the_model(self) -> Self:
        if self.model.make is not None:
            longest = self.data.max_prompt_length + max(
                [self.data.max_completion_length, self.evaluation.sampling.gen_length]
                + ([self.rl.sampling.gen_length] if self.rl else [])
            )
            if longest > self.model.make.max_sequence_length:
                raise ValueError(
                    f"data.max_prompt_length plus the longest completion is {longest} tokens, more than "
                    f"model.make.max_sequence_length={self.model.make.max_sequence_length}"
                )
        return self


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
    values = apply_overrides(_read_recipe(recipe), overrides)
    values.setdefault("run_dir", str(Path("runs") / Path(recipe).stem))
    return validated(values)


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Sets ``key=value`` overrides in nested ``values``, in place. Raises ``ConfigError``."""
    for override in overrides:
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
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(fault) for fault in error.errors())) from error


def _read_recipe(recipe: str) -> dict[str, Any]:
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
        if not isinstance(child, dict | None):
            raise ConfigError(f"{key}: {name} is a value, not a group of settings")
        values[name] = dict(child or {})  # a copy: YAML anchors make one dict of several groups
        values = values[name]
    values[last] = value


def _explain(fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        siblings = _fields_at(location[:-1])
        return f"unknown key {key}{_suggestion(location[-1], siblings)}"
    message = fault["msg"].removeprefix("Value error, ")
    if key == "task" and fault["type"] == "value_error":
        return message  # written by the task, with the key
    found = "" if isinstance(fault["input"], dict | BaseModel) else f" (got {fault['input']!r})"
    return f"{key}: {message}{found}" if key else f"{message}{found}"


def _fields_at(location: list[str]) -> list[str]:
    """Field names of the config group at ``location``, [] if it is none."""
    group: Any = Config
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
