"""The sampler: semi-autoregressive denoising of many completions at once (LLaDA, Algorithm 5).

Each row denoises its own active block at its own pace. What cannot matter is not computed: the last
transformer block and the vocabulary projection run only where the active block needs them, rows leave the
batch when they are done, and the first forward pass of identical prompts is shared.

A row's randomness is keyed by its own seed: its noise never depends on the rows it is sampled with. Its
logits do, by rounding: matrix products of another shape add up in another order. In fp32 that changes a token
only where a draw or a ranking is all but tied, which is rare; in bf16 it often does. Equal calls give equal
bits; a run repeats bit for bit because a request is always one whole group.

One block of the whole completion with the ``time`` schedule is Dream's sampler.

Shapes: B rows, R rows still active, P padded prompt, L completion, K block length, N masked positions in the
active blocks.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from d1ray.config import rng
from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.arguments import Seed, read_prompts, read_seeds
from d1ray.diffusion.decoding import choose, draws_positions
from d1ray.diffusion.passes import Passes
from d1ray.diffusion.prompts import Ids, pad_prompts
from d1ray.diffusion.proposal import propose
from d1ray.diffusion.schedule import commit_counts
from d1ray.models.model import DiffusionLM


@dataclass(frozen=True)
class Samples:
    """Completions and how they came about.

    Attributes:
        ids: ``[B, L]`` completion tokens; positions that were never denoised hold EOS.
        step_map: ``[B, L]`` the row's denoising step that committed each token, -1 if none did. Steps count
            from 0, and only those that commit something.
        logps: ``[B, L]`` the model's log-probability of the token when it was committed (temperature 1,
            guidance and stale caches included), 0 where no step committed it.
        forwards: ``[B]`` forward passes each row took part in: one a step, two with guidance.
    """

    ids: Tensor
    step_map: Tensor
    logps: Tensor
    forwards: Tensor


def sample(
    model: DiffusionLM,
    prompts: Iterable[Ids] | Tensor,
    config: SamplerConfig,
    seeds: Iterable[Seed] | Tensor,
) -> Samples:
    """Samples one completion for each prompt.

    Args:
        model: in eval mode, on any device, of any floating type.
        prompts: B token sequences of any lengths (at least one token each): lists, tuples, arrays or tensors.
        config: lengths, schedule, temperature, decoding policy, guidance and cache.
        seeds: B seeds, each an integer or a sequence of them (run seed, counters...). Equal seeds give equal
            noise, in any batch; with equal prompts they give equal completions, in another batch up to the
            rounding of the logits.

    Raises:
        TypeError: prompts or seeds are not sequences, or hold anything but integers.
        ValueError: there are no prompts, one is empty, leaves no room for a completion in the model's
            context or holds an id outside the vocabulary, or as many seeds as prompts are not given.
        FloatingPointError: the model returns a logit that is NaN or +inf, or no finite one.

    Example:
        >>> samples = sample(model, [[4, 11, 5]], SamplerConfig(gen_length=8, steps=8, block_length=8), [0])
        >>> samples.ids.shape
        torch.Size([1, 8])
    """
    tokens, keys = read_prompts(prompts, model.config.embeddings), read_seeds(seeds)
    if len(keys) != len(tokens):
        raise ValueError(f"sample needs one seed per prompt: got {len(keys)} for {len(tokens)} prompts")
    longest, context = max(map(len, tokens), default=0), model.config.max_sequence_length
    if longest + config.gen_length > context:
        raise ValueError(
            f"a prompt of {longest} tokens and gen_length={config.gen_length} are more than the model's "
            f"max_sequence_length={context}; shorten the prompt or gen_length"
        )
    with torch.inference_mode():
        denoising = _Denoising(model, tokens, config, keys)
        while len(denoising.active):
            denoising.step()
    # Copies made outside inference mode may take part in later gradients, e.g. as inputs of the model.
    return Samples(
        denoising.tokens[:, -config.gen_length :].clone(),
        denoising.step_map.clone(),
        denoising.logps.clone(),
        denoising.steps * len(denoising.passes),
    )


class _Denoising:
    """The state of one ``sample`` call: one entry per row, and the rows that are still active."""

    def __init__(
        self,
        model: DiffusionLM,
        prompts: Sequence[tuple[int, ...]],
        config: SamplerConfig,
        seeds: Sequence[tuple[int, ...]],
    ):
        self.model, self.config = model, config
        self.device = next(model.parameters()).device
        rows, length = len(prompts), config.gen_length
        padded, attention_mask = pad_prompts(prompts, length, model.config.pad_token_id, self.device)
        masks = padded.new_full((rows, length), model.config.mask_token_id)
        self.tokens = torch.cat([padded, masks], dim=1)  # [B, P + L]
        self.prompt_length = padded.shape[1]
        self.masked = torch.ones(rows, length, dtype=torch.bool, device=self.device)
        self.step_map = torch.full((rows, length), -1, dtype=torch.int32, device=self.device)
        self.logps = torch.zeros(rows, length, device=self.device)
        self.steps = torch.zeros(rows, dtype=torch.int32, device=self.device)
        self.block = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.step_in_block = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.active = torch.arange(rows, device=self.device)
        self.noise = [rng.generator(s[0], "sampler", *s[1:]) for s in seeds]
        # An adaptive policy needs at most a step for every position; the schedule tells it nothing.
        counts = commit_counts(config) if config.scheduled else [1] * config.block_length
        self.quotas = torch.tensor(counts, device=self.device)
        self.passes = [Passes(model, attention_mask, config.cache, _twins(prompts))]
        if config.cfg_scale:  # a prompt that is all masks differs from others by its length alone
            self.passes.append(Passes(model, attention_mask, config.cache, _twins([len(p) for p in prompts])))

    def step(self) -> None:
        """One denoising step of every active row: predict, propose, choose, commit, advance."""
        rows = self.active
        within = torch.arange(self.config.block_length, device=self.device)
        places = self.block[rows, None] * self.config.block_length + within  # [R, K] of the completion
        place = (rows[:, None], places)
        masked = self.masked[place]
        hidden = [h[masked] for h in self._hidden(rows, places + self.prompt_length)]
        token_noise, position_noise = self._uniforms(rows)
        noise = None if token_noise is None else token_noise[masked]
        proposals = propose(self.model, hidden, noise, self.config)

        confidence = proposals.confidence.new_zeros(masked.shape).masked_scatter(masked, proposals.confidence)
        quota = self.quotas[self.step_in_block[rows]]
        commit = choose(confidence, masked, quota, position_noise, self.config)  # [R, K]

        chosen = commit[masked]
        where = (rows[:, None].expand_as(places)[commit], places[commit])
        self.tokens[where[0], where[1] + self.prompt_length] = proposals.tokens[chosen]
        self.logps[where] = proposals.logps[chosen]
        self.step_map[where] = self.steps[where[0]]
        self.masked[where] = False
        self.steps[rows] += 1
        self.step_in_block[rows] += 1
        self._advance(rows, places)

    def _hidden(self, rows: Tensor, at: Tensor) -> list[Tensor]:
        """Hidden states ``[R, K, d]`` of the columns ``at [R, K]``: with the prompt and, for guidance, with
        masks in its place."""
        inputs = [self.tokens[rows]]
        if len(self.passes) == 2:
            inputs.append(inputs[0].clone())
            inputs[1][:, : self.prompt_length] = self.model.config.mask_token_id
        entering = self.step_in_block[rows] == 0
        return [
            passes.hidden(tokens, rows, at, entering)
            for passes, tokens in zip(self.passes, inputs, strict=True)
        ]

    def _uniforms(self, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Uniforms ``[R, K]`` for tokens and for positions, each None where it is not used. A step uses up as
        many of a row's whatever is masked."""
        used = [self.config.temperature > 0, draws_positions(self.config)]
        if not any(used):
            return None, None
        shape = sum(used), self.config.block_length
        uniforms = np.stack([self.noise[row].random(shape) for row in rows.tolist()], axis=1)
        drawn = iter(torch.from_numpy(uniforms).to(self.device))
        return next(drawn) if used[0] else None, next(drawn) if used[1] else None

    def _advance(self, rows: Tensor, places: Tensor) -> None:
        """Moves rows with a finished block to the next one; rows that are done leave the batch.

        A row is done after its last block, or after one that holds an EOS: within a block an EOS may come
        before other tokens, but what follows such a block is not part of the completion.
        """
        finished = ~self.masked[rows[:, None], places].any(-1)
        if not finished.any():
            return
        completion = self.tokens[:, self.prompt_length :]
        eos = self.model.config.eos_token_id
        ended = (completion[rows[:, None], places] == eos).any(-1)
        last = self.block[rows] == self.config.gen_length // self.config.block_length - 1
        done = finished & (ended | last)
        done_rows = rows[done]
        completion[done_rows] = completion[done_rows].masked_fill(self.masked[done_rows], eos)
        self.block[rows[finished & ~done]] += 1
        self.step_in_block[rows[finished & ~done]] = 0
        self.active = rows[~done]


def _twins(keys: Sequence[Hashable]) -> list[int]:
    """For each row the first row with the same key."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(key, row) for row, key in enumerate(keys)]
