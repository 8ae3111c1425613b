"""What a likelihood estimator is: it turns a group's completions into masked views that are scored.

A view hides some completion tokens and scores some of the hidden ones. The estimate of a token's
log-probability, or of a sequence's, is made of the views' log-probabilities and their weights.

Shapes: G completions, R rows (distinct inputs), P prompt, L completion, K views.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from d1ray.config.settings import Named, Probability
from d1ray.diffusion.noise import prompt_mask


@dataclass(frozen=True)
class Group:
    """The G completions of one prompt.

    Attributes:
        group_id: keys the randomness of the views.
        prompt: ``[P]`` token ids.
        completions: ``[G, L]`` token ids.
        step_map: ``[G, L]`` the denoising step that committed each token, -1 if none did.
        scored: ``[G, L]`` True up to and including the first EOS.
    """

    group_id: int
    prompt: NDArray[np.int32]
    completions: NDArray[np.int32]
    step_map: NDArray[np.int32]
    scored: NDArray[np.bool_]


@dataclass(frozen=True)
class GroupView:
    """One view of a group. One row may serve all completions when nothing of them is visible in it.

    Attributes:
        prompts: R arrays ``[P]``, with the mask token where the prompt is hidden.
        inputs: ``[R, L]`` the completion as the model sees it.
        row_of: ``[G]`` the row that scores each completion.
        weights: ``[G, L]`` weight of each token's log-probability; 0 where the view does not score it.
    """

    prompts: Sequence[NDArray[np.int32]]
    inputs: NDArray[np.int32]
    row_of: NDArray[np.int64]
    weights: NDArray[np.float32]


class Estimator(Named):
    """An estimator and its settings. Subclasses are registered in ``d1ray.diffusion.estimators``."""

    prompt_mask_prob: Probability = Field(0.0, description="prompt tokens hidden in every view")

    @property
    @abstractmethod
    def views_per_update(self) -> int:
        """K, the number of views of each inner update."""

    @abstractmethod
    def views(self, group: Group, mask_id: int, seed: int, inner: int) -> list[GroupView]:
        """The K views of ``group`` at inner update ``inner``; equal arguments give equal views.

        Args:
            group: the completions.
            mask_id: the mask token.
            seed: the run's seed.
            inner: the inner update, from 0; estimators redraw their noise for each.
        """

    def masked_prompt(
        self, prompt: NDArray[np.int32], mask_id: int, seed: int, *counters: int
    ) -> NDArray[np.int32]:
        """The prompt, each token hidden with ``prompt_mask_prob`` (d1, Section 3.2), keyed by counters."""
        if self.prompt_mask_prob == 0:
            return prompt
        hidden = prompt_mask(len(prompt), self.prompt_mask_prob, seed, *counters)
        return np.where(hidden, np.int32(mask_id), prompt).astype(np.int32)


def per_completion_view(
    group: Group,
    prompts: Sequence[NDArray[np.int32]],
    hidden: NDArray[np.bool_],
    weights: NDArray[np.float32],
    mask_id: int,
) -> GroupView:
    """A view with ``hidden [G, L]`` tokens masked, the others visible; equal inputs share a row.

    Sharing is exact: equal inputs have equal logits, whatever is scored there.

    Args:
        group: the completions.
        prompts: G arrays ``[P]``, one for each completion.
        hidden: ``[G, L]``.
        weights: ``[G, L]``, 0 where not hidden.
        mask_id: the mask token.
    """
    inputs = np.where(hidden, np.int32(mask_id), group.completions).astype(np.int32)
    keys = [prompt.tobytes() + row.tobytes() for prompt, row in zip(prompts, inputs, strict=True)]
    first: dict[bytes, int] = {}  # a distinct row's key: the first completion that has it
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    row_of = {key: row for row, key in enumerate(first)}
    rows = list(first.values())
    return GroupView(
        [prompts[i] for i in rows], inputs[rows], np.array([row_of[key] for key in keys], np.int64), weights
    )
