"""Row: one completion on its way from masks to text.

A row owns its prompt, settings, noise and progress. Nothing of it depends on the rows it is computed with:
its width follows from its own length, its noise from its own seed. So it may join a batch at any denoising
step, and leave it and come back between blocks, where not even a cache is lost.

Shapes: C columns of a row (padding, prompt, completion), L completion, K block length.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from d1ray.config import rng
from d1ray.config.sampling import ADAPTIVE, SamplerConfig
from d1ray.diffusion.decoding import draws_positions
from d1ray.diffusion.schedule import commit_counts
from d1ray.models.cache import KVCache
from d1ray.serving.weights import Weights


@dataclass(frozen=True)
class Commit:
    """What one denoising step commits: places in the completion, their tokens, and the model's probabilities
    of these (temperature 1)."""

    positions: list[int]
    tokens: list[int]
    confidences: list[float]


@dataclass(frozen=True)
class How:
    """The settings by which tokens and positions are chosen: rows with equal ones are chosen together."""

    greedy: bool
    decoding: str
    limit: float  # of an adaptive decoding
    position_temperature: float


@dataclass(eq=False)
class Row:
    """The state of one completion.

    Args:
        weights: the model it is sampled from, to its end.
        prompt: token ids, at least one.
        config: how it is denoised; guidance is not served.
        seed: (request's seed, choice): the key of its noise.
        limit: tokens of the completion that count, at most ``config.gen_length``.
        ends: token ids that end the text.

    Attributes:
        tokens: ``[C]``, left padding to ``width`` columns included.
        attended: ``[C]`` 0 at padding.
        settled: how many tokens of the completion stand, from its start, without a mask between.
        block, step_in_block, steps: where the denoising is; steps are forward passes, too.
        finish: why the text is complete: "stop" at an end token, "length" at ``limit``; None before.
        kept: the cache that holds its keys and values, and its place there; None between blocks.
    """

    weights: Weights
    prompt: Sequence[int]
    config: SamplerConfig
    seed: tuple[int, ...]
    limit: int
    ends: Collection[int]
    tokens: NDArray[np.int64] = field(init=False)
    attended: NDArray[np.int64] = field(init=False)
    settled: int = field(default=0, init=False)
    block: int = field(default=0, init=False)
    step_in_block: int = field(default=0, init=False)
    steps: int = field(default=0, init=False)
    finish: str | None = field(default=None, init=False)
    kept: tuple[KVCache, int] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        model = self.weights.model.config
        length = self.config.gen_length
        columns = width(len(self.prompt) + length, model.max_sequence_length)
        self.start = columns - length
        self.tokens = np.full(columns, model.pad_token_id, np.int64)
        self.tokens[self.start - len(self.prompt) : self.start] = self.prompt
        self.tokens[self.start :] = self.mask_id = model.mask_token_id
        self.attended = np.zeros(columns, np.int64)
        self.attended[self.start - len(self.prompt) :] = 1
        self.noise = rng.generator(self.seed[0], "sampler", *self.seed[1:])
        self.quotas = commit_counts(self.config) if self.config.scheduled else None
        self.how = _how(self.config)

    @property
    def columns(self) -> int:
        """C, what the row takes of a batch's token budget."""
        return len(self.tokens)

    @property
    def at(self) -> int:
        """The first column of the active block."""
        return self.start + self.block * self.config.block_length

    @property
    def reach(self) -> int:
        """Columns from ``at`` on whose predictions a full pass computes: blocks of like length share one."""
        length = self.config.block_length
        return length if self.window is not None else -(-length // 32) * 32

    @property
    def entering(self) -> bool:
        """Whether the next step is the first of its block."""
        return self.step_in_block == 0

    @property
    def quota(self) -> int:
        """Positions that the schedule commits in the next step; adaptive decodings do not look at it."""
        return self.quotas[self.step_in_block] if self.quotas else 1

    @property
    def window(self) -> int | None:
        """How many columns the next pass computes: None for all of them."""
        if self.entering or self.config.cache == "none":
            return None
        return self.config.block_length if self.config.cache == "dual" else self.columns - self.at

    def completion(self) -> list[int]:
        """The tokens that stand from the start of the completion on, without what ends them."""
        ids: list[int] = self.tokens[self.start : self.start + min(self.settled, self.limit)].tolist()
        return ids

    def uniforms(self) -> NDArray[np.float64] | None:
        """The step's uniforms ``[1 or 2, K]``, for tokens and for positions; None where neither is drawn. A
        step uses up as many whatever is masked, as in ``d1ray.diffusion.sample``."""
        used = (self.config.temperature > 0) + draws_positions(self.config)
        return self.noise.random((used, self.config.block_length)) if used else None

    def commit(self, chosen: Commit) -> bool:
        """Takes a step's tokens over; returns whether the row is between blocks now, or done.

        The row is done as soon as its text is: where an end token, or ``limit`` tokens, stand without a mask
        before them. Later blocks cannot change that, nor can what is masked behind it.
        """
        self.tokens[np.asarray(chosen.positions) + self.start] = chosen.tokens
        self.steps += 1
        self.step_in_block += 1
        completion = self.tokens[self.start :]
        while self.settled < self.limit and completion[self.settled] != self.mask_id:
            if int(completion[self.settled]) in self.ends:
                self.finish = "stop"
                break
            self.settled += 1
        else:
            if self.settled == self.limit:
                self.finish = "length"
        if self.finish is None:
            block = self.tokens[self.at : self.at + self.config.block_length]
            if (block == self.mask_id).any():
                return False
            self.block += 1
            self.step_in_block = 0
        self.kept = None
        return True


def width(length: int, context: int) -> int:
    """Columns of a row of ``length`` tokens, of which there are few, so that rows share forward passes.

    A power of two, or one and a half of it, 64 at least. The row's own length decides, never its neighbours'.
    """
    power = max(64, 1 << (length - 1).bit_length())
    columns = power * 3 // 4 if power > 64 and length <= power * 3 // 4 else power
    return min(columns, max(context, length))


def _how(config: SamplerConfig) -> How:
    return How(
        config.temperature == 0,
        config.decoding,
        getattr(config, config.decoding) if config.decoding in ADAPTIVE else 0.0,
        config.position_temperature if draws_positions(config) else 0.0,
    )
