"""d1's one-step estimate of per-token log-probabilities (arXiv 2504.12216, Section 3.2).

One forward pass over the fully masked completion and a randomly masked prompt q' gives
log pi(o_k | q') for every token k at once. The logits do not depend on the completion: with one
prompt mask for the group, one row serves all its completions.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from d1ray.config.settings import Probability
from d1ray.diffusion.estimators.estimator import Estimator, Group, GroupView


class OneStep(Estimator):
    """One view: everything hidden, every token up to the first EOS scored with weight 1."""

    name: Literal["one_step"] = "one_step"
    prompt_mask_prob: Probability = Field(0.15, description="prompt tokens hidden in the view")
    mask_scope: Literal["group", "completion"] = Field(
        "group", description="one prompt mask per group (G-fold cheaper) or per completion (d1's own)"
    )

    @property
    def views_per_update(self) -> int:
        return 1

    def views(self, group: Group, mask_id: int, seed: int, inner: int) -> list[GroupView]:
        size, length = group.completions.shape
        own: list[tuple[int, ...]] = [()] if self.mask_scope == "group" else [(g,) for g in range(size)]
        prompts = [
            self.masked_prompt(group.prompt, mask_id, seed, group.group_id, inner, *key) for key in own
        ]
        row_of = np.zeros(size, np.int64) if self.mask_scope == "group" else np.arange(size)
        inputs = np.full((len(prompts), length), mask_id, np.int32)
        return [GroupView(prompts, inputs, row_of, group.scored.astype(np.float32))]
