"""The sampler: semi-autoregressive denoising of many completions at once (LLaDA, Algorithm 5).

Each row denoises its own active block at its own pace. What cannot matter is not computed: the
vocabulary projection runs only at masked positions of the active block, rows leave the batch when
they are done, and the first forward of identical prompts is shared. A row's randomness is keyed by
its own seed, so its completion does not depend on which rows it is sampled with.

Shapes: B rows, R rows still active, P padded prompt, L completion, K block length, N masked
positions in the active blocks, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from d1ray import rng
from d1ray.config import SamplerConfig
from d1ray.diffusion.decoding import POLICIES
from d1ray.diffusion.prompts import pad_prompts
from d1ray.models import LLaDA

Seed = int | tuple[int, ...]


@dataclass(frozen=True)
class Samples:
    """Completions and how they came about.

    Attributes:
        ids: ``[B, L]`` completion tokens; positions that were never denoised hold EOS.
        step_map: ``[B, L]`` the row's denoising step that committed each token, -1 if none did.
        logps: ``[B, L]`` the model's log-probability of the token when it was committed
            (temperature 1), 0 where no step committed it.
        forwards: ``[B]`` denoising steps each row took part in.
    """

    ids: Tensor
    step_map: Tensor
    logps: Tensor
    forwards: Tensor


def sample(
    model: LLaDA, prompts: Sequence[Sequence[int]], config: SamplerConfig, seeds: Sequence[Seed]
) -> Samples:
    """Samples one completion for each prompt.

    Args:
        model: in eval mode, on any device.
        prompts: B token sequences of any lengths (at least one token each).
        config: lengths, schedule, temperature and decoding policy.
        seeds: B seeds, each an int or a tuple (run seed, counters...). Equal seeds and prompts give
            equal completions.

    Raises:
        ValueError: no prompts, an empty prompt, or as many seeds as prompts are not given.
        FloatingPointError: the model returns NaN.

    Example:
        >>> samples = sample(model, [[4, 11, 5]], SamplerConfig(gen_length=8, steps=8, block_length=8), [0])
        >>> samples.ids.shape
        torch.Size([1, 8])
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"sample needs one seed per prompt: got {len(seeds)} for {len(prompts)} prompts")
    with torch.inference_mode():
        denoising = _Denoising(model, prompts, config, seeds)
        while len(denoising.active):
            denoising.step()
    return Samples(
        denoising.tokens[:, -config.gen_length :], denoising.step_map, denoising.logps, denoising.steps
    )


class _Denoising:
    """The state of one ``sample`` call."""

    def __init__(
        self, model: LLaDA, prompts: Sequence[Sequence[int]], config: SamplerConfig, seeds: Sequence[Seed]
    ):
        self.model, self.config = model, config
        self.policy = POLICIES[config.decoding]
        self.device = next(model.parameters()).device
        rows, length = len(prompts), config.gen_length
        padded, self.attention_mask = pad_prompts(prompts, length, model.config.pad_token_id, self.device)
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
        self.noise = [rng.generator(s[0], "sampler", *s[1:]) for s in (_as_tuple(seed) for seed in seeds)]
        steps_per_block = config.steps // (length // config.block_length)
        self.quotas = torch.tensor(commit_schedule(config.block_length, steps_per_block), device=self.device)
        first_of: dict[tuple[int, ...], int] = {}
        self.first_rows = [first_of.setdefault(tuple(prompt), row) for row, prompt in enumerate(prompts)]

    def step(self) -> None:
        """One denoising step of every active row: predict, choose, commit, advance."""
        rows = self.active
        positions = self.block[rows, None] * self.config.block_length + torch.arange(
            self.config.block_length, device=self.device
        )  # [R, K] within the completion
        masked = self.masked[rows[:, None], positions]
        hidden = self._hidden(rows)
        hidden = hidden[torch.arange(len(rows), device=self.device)[:, None], positions + self.prompt_length]
        proposal, logp = self._propose(self.model.head(hidden[masked]).float(), rows, masked)  # [N], [N]

        confidence = torch.full(masked.shape, -torch.inf, device=self.device)
        confidence[masked] = logp.exp()
        quota = self.quotas[self.step_in_block[rows].clamp(max=len(self.quotas) - 1)]
        commit = self.policy(confidence, quota, self.config)  # [R, K]

        chosen = commit[masked]
        where = (rows[:, None].expand_as(positions)[commit], positions[commit])
        self.tokens[where[0], where[1] + self.prompt_length] = proposal[chosen]
        self.logps[where] = logp[chosen]
        self.step_map[where] = self.steps[where[0]]
        self.masked[where] = False
        self.steps[rows] += 1
        self.step_in_block[rows] += 1
        self._advance(rows, positions)

    def _hidden(self, rows: Tensor) -> Tensor:
        """Hidden states ``[R, P + L, d]``; identical prompts share the first, fully masked forward."""
        if int(self.steps[rows[0]]) == 0:
            distinct = sorted(set(self.first_rows))
            index = torch.tensor([distinct.index(first) for first in self.first_rows], device=self.device)
            return self._forward(torch.tensor(distinct, device=self.device))[index]
        return self._forward(rows)

    def _forward(self, rows: Tensor) -> Tensor:
        mask = None if self.attention_mask is None else self.attention_mask[rows]
        return self.model.hidden(self.tokens[rows], mask)

    def _propose(self, logits: Tensor, rows: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """x0 ~ softmax(logits / T) by inverse CDF, and its log-probability at temperature 1: ``[N]`` each.

        The mask token is not a prediction: it has probability 0.
        """
        logits[:, self.model.config.mask_token_id] = -torch.inf
        logps = logits.log_softmax(-1)
        if logps[:, 0].isnan().any():  # one NaN or +inf logit makes the whole row NaN
            raise FloatingPointError("the model returns NaN logits; check its weights and dtype")
        if self.config.temperature == 0:
            proposal = logits.argmax(-1)
        else:
            width = self.config.block_length
            uniforms = np.stack([self.noise[row].random(width, dtype=np.float32) for row in rows.tolist()])
            uniform = torch.from_numpy(uniforms).to(self.device)[masked]
            cdf = (logits / self.config.temperature).softmax(-1).cumsum(-1)  # [N, V]
            total = cdf[:, -1]
            target = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
            proposal = torch.searchsorted(cdf, target[:, None], right=True).squeeze(1)
        return proposal, logps.gather(1, proposal[:, None]).squeeze(1)

    def _advance(self, rows: Tensor, positions: Tensor) -> None:
        """Moves rows with a finished block to the next one; rows that are done leave the batch."""
        finished = ~self.masked[rows[:, None], positions].any(-1)
        completion = self.tokens[:, self.prompt_length :]
        eos = self.model.config.eos_token_id
        ended = (completion[rows[:, None], positions] == eos).any(-1)
        last = self.block[rows] == self.config.gen_length // self.config.block_length - 1
        done = finished & (ended | last)
        done_rows = rows[done]
        completion[done_rows] = completion[done_rows].masked_fill(self.masked[done_rows], eos)
        self.block[rows[finished & ~done]] += 1
        self.step_in_block[rows[finished & ~done]] = 0
        self.active = rows[~done]


def commit_schedule(block_length: int, steps: int) -> list[int]:
    """Tokens committed at each of a block's steps: block_length // steps, the remainder first."""
    base, remainder = divmod(block_length, steps)
    return [base + (step < remainder) for step in range(steps)]


def _as_tuple(seed: Seed) -> tuple[int, ...]:
    return seed if isinstance(seed, tuple) else (seed,)
