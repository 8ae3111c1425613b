"""What a recipe needs before it runs: memory of each actor, bytes in the object store, and where time goes.

Counted from the model's shapes and the settings; what Python, torch and CUDA take themselves comes on top.
"""

from dataclasses import dataclass

import torch

from d1ray.config.rl import RLConfig
from d1ray.config.run import Config
from d1ray.models.lora import add_lora
from d1ray.models.make import empty_model_of
from d1ray.models.model import DiffusionLM
from d1ray.models.weights import live_tensors

FP32, BF16 = 4, 2  # bytes
PER_TOKEN = 14, 3  # activations a block keeps for its backward pass: of width d, and of the MLP's width


@dataclass(frozen=True)
class Estimate:
    """Bytes, and shares of the time of a step.

    Attributes:
        parameters: how many the model has.
        trained: how many of them, or of its adapter's, are trained.
        generator: of one generator: policy, reference, and the activations of a request.
        learner: of one learner rank: weights, reference, gradients, AdamW's two moments, activations.
        offloaded: how much of that is in CPU memory (``rl.offload``).
        published: of one version of the weights, as it lies in the object store.
        stored: in the object store at most: policy, the one before it, reference and rollouts.
        shares: of the time of a step, by forward passes over tokens, if all actors are equally fast:
            "generate", "logprob" (old and reference likelihoods) and "learn".
    """

    parameters: int
    trained: int
    generator: int
    learner: int
    offloaded: int
    published: int
    stored: int
    shares: dict[str, float]


def estimate(config: Config) -> Estimate:
    """Estimates the RL stage of ``config``; of the model only its ``config.json`` is read.

    Raises:
        ModelError: the model's configuration cannot be read.
        ValueError: the recipe has no RL stage.
    """
    rl, cluster = config.rl, config.cluster
    if rl is None:
        raise ValueError("the recipe has no rl section")
    model = empty_model_of(config)
    parameters = sum(p.numel() for p in model.parameters())
    if rl.lora:
        with torch.device("meta"):
            add_lora(model, rl.lora)
    trained = sum(tensor.numel() for tensor in live_tensors(model).values())
    needs_reference = rl.algorithm.needs_reference
    width = config.data.max_prompt_length + rl.sampling.gen_length
    per_token = _activations(model)
    layers = len(list(model.blocks()))
    sampled = rl.group_size * width * per_token  # one block at a time
    references = trained if needs_reference else 0
    held = BF16 if config.model.precision == "bf16" else FP32
    adapter = FP32 if rl.lora else held  # bytes of a trained number in a generator
    generator = held * (parameters + sampled) + adapter * ((trained if rl.lora else 0) + references)
    kept = layers * _width(model) + per_token if rl.gradient_checkpointing else layers * per_token
    spread = cluster.learners if rl.sharding == "fsdp" else 1
    weights = (held if rl.lora else FP32) * parameters + (FP32 * trained if rl.lora else 0)
    states = weights + FP32 * (references + 3 * trained)  # with gradient and two moments
    states_of_a_rank = -(-states // spread)
    learner = states_of_a_rank + held * rl.micro_batch_tokens * kept
    published = adapter * trained
    rows = rl.prompts_per_step * rl.group_size * (rl.staleness + 1)
    views = rl.mu * rl.algorithm.estimator.views_per_update
    likelihoods = rl.algorithm.needs_old + needs_reference
    rollouts = rows * rl.sampling.gen_length * FP32 * (3 + likelihoods * views)
    return Estimate(
        parameters,
        trained,
        generator,
        learner,
        states_of_a_rank if rl.offload else 0,
        published,
        (2 + needs_reference) * published + rollouts,
        _shares(rl, cluster.generators, cluster.learners, likelihoods),
    )


def _shares(rl: RLConfig, generators: int, learners: int, likelihoods: int) -> dict[str, float]:
    """Forward passes of rows an actor, as shares; a backward pass costs two, recomputed blocks one more."""
    shared = getattr(rl.algorithm.estimator, "mask_scope", "completion") == "group"
    rows = (1 if shared else rl.group_size) * rl.algorithm.estimator.views_per_update * rl.mu
    before = rl.importance_cap is not None and rl.staleness > 0  # a pass under the policy before the step
    costs = {
        "generate": rl.group_size * rl.sampling.steps / generators,
        "logprob": rows * likelihoods / generators,
        "learn": rows * (3 + rl.gradient_checkpointing + before) / learners,
    }
    return {name: cost / sum(costs.values()) for name, cost in costs.items()}


def _width(model: DiffusionLM) -> int:
    return int(model.head_weight.shape[1])


def _activations(model: DiffusionLM) -> int:
    """Numbers that a block keeps for each token."""
    d = _width(model)
    widest = max(max(p.shape) for p in next(iter(model.blocks())).parameters())
    return PER_TOKEN[0] * d + PER_TOKEN[1] * int(widest)
