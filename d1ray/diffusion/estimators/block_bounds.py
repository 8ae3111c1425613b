"""SPG's block-wise views (arXiv 2510.09541): one block partly hidden, the blocks after it hidden."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from d1ray.config import rng
from d1ray.config.settings import PositiveInt, Probability
from d1ray.diffusion.estimators.estimator import Group
from d1ray.diffusion.estimators.subsets import SubsetEstimator, Subsets, random_subsets, subsets_of_size


class BlockBounds(SubsetEstimator):
    """m = ``samples`` views, from which SPG's loss computes a lower and an upper bound.

    The n valid tokens lie in nb = ceil(n / ``block_length``) blocks. The views' blocks are drawn without
    replacement, and again from the first when m > nb. With w valid tokens in its block, view j hides

    - in the block, a uniform subset of c ~ U{1..w} tokens;
    - all tokens of later blocks, and everything after the first EOS;
    - each token of the prompt and of earlier blocks with ``prompt_mask_prob``,

    and scores S_j, every valid token it hides, at weight 1 / (m |S_j|). So, with p_k(j) the probability of
    token k in view j,

        E = mean_j 1 / |S_j| sum_{k in S_j} log p_k(j) = sum over views and tokens of weight x log p,

    the ELBO per token. The upper bound needs more of a view than its weights:
    |S_j| = ``(weights[j] != 0).sum(-1)`` and t_j = |S_j| / n with n = ``scored.sum(-1)``; thus
    a_k = mean_j 1[k in S_j] p_k(j)^beta / t_j = sum_j n weights[j, k] p_k(j)^beta.
    """

    name: Literal["block_bounds"] = "block_bounds"
    samples: PositiveInt = Field(2, description="m, views of each inner update")
    block_length: PositiveInt = Field(32, description="tokens of a block, as the sampler's")
    prompt_mask_prob: Probability = Field(
        0.15, description="hidden tokens of the prompt and of earlier blocks"
    )

    @property
    def views_per_update(self) -> int:
        return self.samples

    def subsets(self, n: int, seed: int, group_id: int, inner: int, rollout: int) -> Subsets:
        draw = rng.generator(seed, "estimator", group_id, inner, rollout)
        order = draw.permutation(-(-n // self.block_length))
        hidden = random_subsets(draw, np.full(self.samples, self.prompt_mask_prob), n)
        for view, block in enumerate(np.resize(order, self.samples).tolist()):
            start, end = block * self.block_length, min((block + 1) * self.block_length, n)
            count = draw.integers(1, end - start, size=1, endpoint=True)
            hidden[view, start:end] = subsets_of_size(draw, count, end - start)
            hidden[view, end:] = True
        return hidden, 1 / (self.samples * hidden.sum(axis=1))

    def prompts(
        self, group: Group, mask_id: int, seed: int, inner: int
    ) -> Sequence[Sequence[NDArray[np.int32]]]:
        """Each view of each completion has its own prompt mask, like its own mask of earlier blocks."""
        return [
            [
                self.masked_prompt(group.prompt, mask_id, seed, group.group_id, inner, rollout, view)
                for rollout in range(len(group.completions))
            ]
            for view in range(self.samples)
        ]
