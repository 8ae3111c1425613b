"""Every setting and its one default, as strict pydantic models; YAML recipes and ``key=value`` overrides.

The defaults are d1's published hyper-parameters (arXiv 2504.12216, Section 4 and Appendix B).
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    SerializeAsAny,
    model_validator,
)
from transformers import PreTrainedTokenizerBase
from upath import UPath

from d1ray.diffusion.sampler_config import SamplerConfig
from d1ray.models.chat import prompt_fits
from d1ray.models.lora import LoRAConfig
from d1ray.rl.algorithms import ALGORITHMS, Algorithm, DiffuGRPO, load_algorithm
from d1ray.rl.mismatch import MismatchConfig
from d1ray.settings import (
    AbsolutePath,
    LocalOrHub,
    MomentumDecay,
    NonNegativeInt,
    PositiveInt,
    Probability,
    Strict,
)
from d1ray.tasks import Example, Task, load_task
from d1ray.tasks.source import Data, open_data
from d1ray.tasks.task import DemonstrationStyle


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
        None, description="distinct demonstrations; null: unlimited fresh ones, or all rows of a file"
    )
    steps: PositiveInt = 1000
    batch_size: PositiveInt = Field(64, description="demonstrations an update, over all workers")
    eps: float = Field(1e-3, gt=0, le=1, description="smallest masking probability t")
    eos_padding: PositiveInt | None = Field(
        None, description="EOS up to a multiple of so many tokens; null: to data.max_completion_length"
    )
    overlong: Literal["error", "truncate"] = Field("error", description="completions that are too long")
    micro_batch_tokens: PositiveInt | None = Field(
        None, description="tokens per forward/backward; null: a worker's whole share of the batch"
    )
    packing: bool = Field(False, description="short demonstrations share rows, without seeing each other")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the computation; see also lora")
    gradient_checkpointing: bool = Field(False, description="recompute blocks in the backward pass")
    checkpoint_every: PositiveInt | None = Field(None, description="steps; null: only when interrupted")
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


def check_offload(part: str, offload: bool, sharding: str) -> None:
    """Raises ValueError if ``offload`` is asked of weights that are not sharded: FSDP does it."""
    if offload and sharding != "fsdp":
        raise ValueError(
            f"{part}.offload=true keeps sharded weights on the CPU; set {part}.sharding=fsdp too"
        )


def load_optional_task(value: Any) -> Task | None:
    """``load_task`` where a task may be left out."""
    return None if value is None else load_task(value)


class ModelConfig(Strict):
    """Where the model comes from: a Hugging Face folder or hub id, or an architecture to make."""

    path: LocalOrHub | None = Field(None, description="folder or hub id")
    make: ArchitectureConfig | None = None
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of generators, and of the RL learner's matrix products and frozen weights"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.make is None):
            raise ValueError("set exactly one of model.path (a folder) and model.make (an architecture)")
        return self


class DataConfig(Strict):
    """Where examples come from: the task's generator, files, or the Hugging Face hub."""

    path: LocalOrHub | None = Field(
        None,
        description="file, folder with train.* and test.*, or hub id; null: generated, or the task's own on "
        "the hub",
    )
    subset: str | None = Field(None, description="configuration of a hub data set, e.g. main")
    columns: Mapping[str, str] = Field({}, description="the data's name of a column the task reads")
    overlong_prompts: Literal["error", "drop"] = Field("error", description="rows with too long a prompt")
    max_prompt_length: PositiveInt = Field(200, description="tokens, chat template included")
    max_completion_length: PositiveInt = Field(256, description="tokens; SFT pads completions to it with EOS")

    def open(self, task: Task, seed: int, tokenizer: PreTrainedTokenizerBase) -> Data:
        """The examples of ``task``. Raises ``DataError`` (``d1ray.tasks.source.open_data``)."""
        keeps = partial(self.keeps, tokenizer)
        return open_data(task, self.path, seed, subset=self.subset, columns=self.columns, keeps=keeps)

    def keeps(self, tokenizer: PreTrainedTokenizerBase, example: Example) -> bool:
        """Whether ``overlong_prompts`` leaves the example in."""
        return self.overlong_prompts == "error" or prompt_fits(
            tokenizer, example.prompt, self.max_prompt_length, example.prefill
        )


class SFTConfig(MaskedTrainingConfig):
    """The SFT stage (d1, Section 3.1): an adapter or all weights, on the run's task or on data of its own."""

    task: Annotated[SerializeAsAny[Task] | None, BeforeValidator(load_optional_task)] = Field(
        None, description="whose demonstrations; null: the run's task"
    )
    data: DataConfig | None = Field(None, description="where they come from; null: the run's data")
    lora: LoRAConfig | None = Field(None, description="train an adapter and merge it; null: all weights")
    sharding: Literal["none", "fsdp"] = Field(
        "none", description="fsdp spreads weights and optimiser over the workers; none gives each a copy"
    )
    offload: bool = Field(False, description="as rl.offload")
    validate_every: PositiveInt | None = Field(
        None, description="steps between validation losses, the least of which chooses the model"
    )
    validation_examples: PositiveInt = 256
    patience: PositiveInt | None = Field(
        None, description="validations without a new least loss after which training stops"
    )

    @model_validator(mode="after")
    def _what_is_offloaded_is_sharded(self) -> Self:
        check_offload("sft", self.offload, self.sharding)
        return self

    @model_validator(mode="after")
    def _patience_is_of_validations(self) -> Self:
        if self.patience is not None and self.validate_every is None:
            raise ValueError("patience counts validations; set validate_every too")
        return self


class RLConfig(Strict):
    """The RL stage (d1, Section 3 and Table 5)."""

    steps: NonNegativeInt = Field(640, description="outer steps: generate, score, mu updates, publish")
    prompts_per_step: PositiveInt = 16
    group_size: Annotated[int, Field(strict=True, ge=2)] = 6
    mu: PositiveInt = Field(12, description="inner updates per batch of rollouts")
    algorithm: Annotated[SerializeAsAny[Algorithm], BeforeValidator(load_algorithm)] = DiffuGRPO()
    lora: LoRAConfig | None = Field(None, description="train an adapter; null: all weights")
    skip_zero_advantage: bool = Field(False, description="leave groups with equal rewards out of the loss")
    reference_sync_updates: PositiveInt | None = Field(64, description="null: the reference never moves")
    staleness: NonNegativeInt = Field(0, description="0 is synchronous")
    importance_cap: PositiveFloat | None = Field(
        None,
        description="null: the clipped ratio refers to the policy that sampled; a number C: it refers to the "
        "policy before the step, and each token (of sequence-level losses each completion) is weighted by "
        "min(C, pi_before / pi_sampled)",
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    sampling: SamplerConfig = SamplerConfig()
    mismatch: MismatchConfig = MismatchConfig()
    gradient_checkpointing: bool = Field(False, description="recompute blocks in the backward pass")
    micro_batch_tokens: PositiveInt = Field(16384, description="tokens per forward/backward")
    sharding: Literal["none", "fsdp"] = Field(
        "none", description="fsdp spreads weights and optimiser over the learner's ranks; none: a copy each"
    )
    offload: bool = Field(
        False,
        description="sharded weights, gradients and optimiser state live in CPU memory and visit the GPU "
        "block by block",
    )
    max_nonfinite: PositiveInt = Field(
        100, description="updates in a row without finite loss and gradient, after which the run ends"
    )
    validate_every: PositiveInt = Field(20, description="outer steps between validations")
    checkpoint_every: PositiveInt = Field(20, description="outer steps; a new best validation has one, too")
    keep_checkpoints: PositiveInt = Field(2, description="so many last ones, beside the best")

    @model_validator(mode="after")
    def _what_is_offloaded_is_sharded(self) -> Self:
        check_offload("rl", self.offload, self.sharding)
        return self

    @model_validator(mode="after")
    def _importance_can_be_weighed(self) -> Self:
        if self.importance_cap is not None and not self.algorithm.weighs_importance:
            able = ", ".join(name for name, kind in ALGORITHMS.items() if kind.weighs_importance)
            raise ValueError(
                f"importance_cap={self.importance_cap:g} does not work with algorithm {self.algorithm.name}; "
                f"set it to null, or use one of {able}"
            )
        return self


class EvaluationSamplerConfig(SamplerConfig):
    """Greedy unless asked otherwise."""

    temperature: NonNegativeFloat = Field(0.0, description="0 is greedy")


class EvaluationConfig(Strict):
    """Validation chooses the checkpoint; test only reports. Greedy, as d1 evaluates."""

    examples: PositiveInt = Field(1024, description="test examples of the final table")
    validation_examples: PositiveInt = 256
    batch_size: PositiveInt = 64
    sampling: EvaluationSamplerConfig = EvaluationSamplerConfig()


class ScoringConfig(Strict):
    """Limits of one check of one completion (``d1ray.tasks.checker``)."""

    timeout_s: PositiveFloat = Field(3.0, description="CPU seconds; a check that takes more scores 0")
    memory_gb: PositiveFloat = Field(2.0, description="of a checking process")


class ClusterConfig(Strict):
    """Actors and what each one holds. Logical CPUs only account; `threads` sets torch's threads."""

    address: str | None = Field(None, description="null: RAY_ADDRESS, the job's cluster, or a local one")
    generators: PositiveInt = 2
    max_generators: PositiveInt | None = Field(
        None, description="further generators join whenever there is room, up to so many in all"
    )
    scorers: PositiveInt = 1
    generator_cpus: NonNegativeFloat = 1
    generator_gpus: NonNegativeFloat = 0
    generator_threads: PositiveInt = 1
    generator_resources: Mapping[str, PositiveFloat] = Field(
        {}, description="custom Ray resources, to keep a kind of actor to its own nodes"
    )
    scorer_cpus: NonNegativeFloat = 1
    scorer_resources: Mapping[str, PositiveFloat] = {}
    learners: PositiveInt = Field(1, description="ranks that share the learning; see rl.sharding")
    learner_restarts: NonNegativeInt = Field(
        10, description="times the ranks are rebuilt from the newest checkpoint without getting past it"
    )
    learner_cpus: NonNegativeFloat = 1
    learner_gpus: NonNegativeFloat = 0
    learner_threads: PositiveInt = 1
    learner_resources: Mapping[str, PositiveFloat] = {}
    sft_workers: PositiveInt = 1
    sft_threads: PositiveInt = 1
    sft_worker_cpus: PositiveFloat = 1
    sft_worker_gpus: NonNegativeFloat = 0
    colocated: bool = Field(
        False,
        description="generator i and learner rank i share a GPU, their _gpus being fractions, and take turns",
    )
    broadcast: bool = Field(
        False,
        description="full weights go to idle generators by one NCCL or gloo broadcast as well as through the "
        "object store",
    )
    dashboard: bool = Field(False, description="start the Ray dashboard with a local cluster")
    placement_s: NonNegativeFloat = Field(30, description="wait for a cluster to have what is asked for")
    deadline_s: PositiveFloat = Field(600, description="longest wait for any one call, in seconds")
    grace_s: PositiveFloat = Field(
        30,
        description="seconds after a signal for the run to end; an RL step or validation that does not "
        "finish in half of it is given up, and the run resumes from its newest checkpoint; the other half is "
        "for writing one",
    )

    @model_validator(mode="after")
    def _turns_can_be_taken(self) -> Self:
        if not self.colocated:
            return self
        if self.max_generators is not None:
            raise ValueError(
                "colocated generators are as many as there are places; give generators, not max_generators"
            )
        if self.learners > self.generators:
            raise ValueError(
                f"colocated learner ranks each need a generator's place; learners={self.learners} is more "
                f"than generators={self.generators}"
            )
        if self.generator_gpus + self.learner_gpus > 1:
            raise ValueError(
                f"colocated actors share a GPU; generator_gpus={self.generator_gpus:g} and learner_gpus="
                f"{self.learner_gpus:g} are more than 1, give fractions such as 0.5 and 0.5"
            )
        return self


class TrackingConfig(Strict):
    """Experiment trackers beside TensorBoard, which is always there."""

    wandb: str | None = Field(None, description="a Weights & Biases project (extra `wandb`)")
    mlflow: str | None = Field(None, description="an MLflow tracking URI (extra `mlflow`)")


class Config(Strict):
    """One run. ``load_config`` builds it from a recipe and overrides."""

    about: str = ""
    seed: NonNegativeInt = 0
    run_dir: AbsolutePath | None = Field(None, description="null: runs/RECIPE")
    checkpoint_path: str | None = Field(
        None, description="null: run_dir/checkpoints; else any fsspec path, e.g. s3://BUCKET/RUN"
    )
    task: Annotated[SerializeAsAny[Task], BeforeValidator(load_task)]
    data: DataConfig = DataConfig()
    model: ModelConfig
    sft: SFTConfig | None = None
    rl: RLConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    scoring: ScoringConfig = ScoringConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _every_worker_has_rows(self) -> Self:
        phases = [
            *(self.model.make.pretraining if self.model.make else ()),
            *([self.sft] if self.sft else []),
        ]
        for phase in phases:
            if phase.batch_size < self.cluster.sft_workers:
                raise ValueError(
                    f"cluster.sft_workers={self.cluster.sft_workers} is more than a batch_size of "
                    f"{phase.batch_size}: every worker needs a row"
                )
        return self

    @model_validator(mode="after")
    def _colocated_actors_take_turns(self) -> Self:
        if self.cluster.colocated and self.rl is not None and self.rl.staleness:
            raise ValueError(
                f"cluster.colocated=true: generators and learner take turns, so nothing overlaps; set "
                f"rl.staleness=0 (it is {self.rl.staleness})"
            )
        return self

    @model_validator(mode="after")
    def _whole_weights_are_broadcast(self) -> Self:
        if self.cluster.broadcast and self.rl is not None and self.rl.lora:
            raise ValueError(
                "cluster.broadcast=true is for full fine-tuning; with rl.lora only the adapter is published, "
                "which is small: leave broadcast out"
            )
        return self

    def checkpoint_root(self, stage: str) -> UPath:
        """Where the checkpoints of a stage lie."""
        assert self.run_dir is not None
        return UPath(self.checkpoint_path or self.run_dir / "checkpoints") / stage

    def check_length(self, limit: int, source: str) -> None:
        """Raises ValueError if prompt and completion can be longer than ``limit``, which ``source`` sets."""
        longest = self.data.max_prompt_length + max(
            [self.data.max_completion_length, self.evaluation.sampling.gen_length]
            + ([self.rl.sampling.gen_length] if self.rl else [])
        )
        if longest > limit:
            raise ValueError(
                f"data.max_prompt_length plus the longest completion is {longest} tokens, more than "
                f"{source}={limit}"
            )
        own = self.sft.data if self.sft else None
        if own and own.max_prompt_length + own.max_completion_length > limit:
            raise ValueError(
                f"sft.data.max_prompt_length plus max_completion_length is "
                f"{own.max_prompt_length + own.max_completion_length} tokens, more than {source}={limit}"
            )

    @model_validator(mode="after")
    def _fits_the_model(self) -> Self:
        if self.model.make is not None:
            self.check_length(self.model.make.max_sequence_length, "model.make.max_sequence_length")
        return self
