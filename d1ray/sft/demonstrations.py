"""Demonstrations as token ids: which ones a training step takes, how they are cut and padded."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from d1ray.config import rng
from d1ray.config.data import DataConfig
from d1ray.config.errors import DataError
from d1ray.config.run import Config
from d1ray.config.sft import MaskedTrainingConfig, SFTConfig
from d1ray.diffusion.masked_loss import Demonstration
from d1ray.models.chat import encode_prompt
from d1ray.run.data import examples_of
from d1ray.tasks.source import Data
from d1ray.tasks.task import Example, Task

CACHED = 4096  # demonstrations kept as token ids


@dataclass(frozen=True)
class Phase:
    """One stretch of masked-diffusion training.

    ``number`` keys its randomness; ``save_to`` is the model folder written at its end, if any.
    """

    stage: str
    number: int
    config: MaskedTrainingConfig
    save_to: Path | None = None


def source_of(config: Config, phase: Phase) -> tuple[Task, DataConfig]:
    """The task and data of a phase: SFT may have its own."""
    own = phase.config if isinstance(phase.config, SFTConfig) else SFTConfig()
    return own.task or config.task, own.data or config.data


@dataclass
class Demonstrations:
    """The demonstrations of one phase.

    Args:
        eos_id: what completions are padded with.
    """

    config: Config
    phase: Phase
    tokenizer: PreTrainedTokenizerBase
    eos_id: int
    _data: Data = field(init=False)
    _cache: dict[int, Demonstration] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.task, self.limits = source_of(self.config, self.phase)
        self._data = examples_of(self.limits, self.task, self.config.seed, self.tokenizer)

    @property
    def dropped(self) -> int:
        """How many examples were left out because their prompts are too long."""
        return sum(self._data.dropped.values())

    def at(self, position: int) -> Demonstration:
        """The demonstration at ``position`` of the phase: step times batch size plus place in the batch."""
        index = demonstration_index(self.config.seed, self.phase, position)
        if index not in self._cache:
            if len(self._cache) >= CACHED:
                self._cache.clear()
            self._cache[index] = self._encode(self._data.train(index, stream=self.phase.stage), index)
        return self._cache[index]

    def validation(self, n: int) -> list[Demonstration]:
        """At most ``n`` demonstrations that no stage trains on, the same for every seed."""
        return [self._encode(e, i) for i, e in enumerate(self._data.examples("validation", n))]

    def check(self) -> None:
        """Encodes every row of a file, or the first of generated demonstrations.

        Raises:
            DataError: one does not fit; names it.
        """
        for index, example in enumerate(self._data.rows("train") or [self._data.train(0, self.phase.stage)]):
            self._encode(example, index)

    def _encode(self, example: Example, index: int) -> Demonstration:
        config, seed, number = self.phase.config, self.config.seed, self.phase.number
        draw = rng.generator(seed, "demonstration", number, index)
        try:
            text = self.task.demonstration(example, config.demonstrations, draw)
            prompt = encode_prompt(self.tokenizer, example.prompt, self.limits.max_prompt_length)
            ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
            completion = padded(ids, self.limits.max_completion_length, self.eos_id, config)
        except ValueError as error:
            raise DataError(f"{example.task} example {example.key}: {error}") from error
        return Demonstration(prompt, completion)


def padded(ids: list[int], longest: int, eos_id: int, config: MaskedTrainingConfig) -> list[int]:
    """A completion with the EOS that belong to it, at most ``longest`` tokens in all.

    Raises:
        ValueError: it is longer, and not to be truncated.
    """
    if len(ids) > longest:
        if config.overlong == "error":
            raise ValueError(
                f"the completion has {len(ids)} tokens, more than data.max_completion_length={longest}; "
                f"raise it, or set overlong=truncate"
            )
        return ids[:longest]
    every = config.eos_padding
    length = longest if every is None else min(longest, (len(ids) // every + 1) * every)
    return ids + [eos_id] * (length - len(ids))


def demonstration_index(seed: int, phase: Phase, position: int) -> int:
    """The demonstration at ``position`` of a phase: fresh ones without limit, or shuffled epochs of N."""
    if phase.config.examples is None:
        return position
    epoch, offset = divmod(position, phase.config.examples)
    return int(_order(seed, phase.number, epoch, phase.config.examples)[offset])


def _order(seed: int, number: int, epoch: int, size: int) -> np.ndarray:
    return rng.generator(seed, "demonstration order", number, epoch).permutation(size)
