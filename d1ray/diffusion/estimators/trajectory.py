"""The sampler's own steps, replayed (TraceRL, arXiv 2509.06949; d2, arXiv 2509.21474; CJ-GRPO).

A completion was committed in steps; given what was visible at a step, the log-probabilities of the tokens
committed there add up to the log-probability of the trajectory. Exactly replayed, that takes as many views
as steps; here runs of neighbouring steps are merged, their tokens predicted from the state before the run.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from d1ray.config.settings import PositiveInt
from d1ray.diffusion.estimators.estimator import Estimator, Group, GroupView, per_completion_view


class Trajectory(Estimator):
    """K = ``segments`` views; every valid token is scored in one of them, at weight 1.

    The distinct steps that committed valid tokens (those up to and including the first EOS) are split, in
    order, into K segments as even as possible. View k hides every position committed at or after the first
    step of segment k and shows all others, also those after the first EOS, since the sampler saw them; it
    scores the valid tokens committed in its segment. A position that no step committed counts as committed
    last. With fewer steps than segments the last views score nothing. K at least the number of steps is
    the exact trajectory; K = 1 is the one-step view, fully masked unless a token after the EOS came first.
    """

    name: Literal["trajectory"] = "trajectory"
    segments: PositiveInt = Field(8, description="K, views that the steps are merged into")

    @property
    def views_per_update(self) -> int:
        return self.segments

    def views(self, group: Group, mask_id: int, seed: int, inner: int) -> list[GroupView]:
        shape = (self.segments, *group.completions.shape)
        hidden, weights = np.ones(shape, bool), np.zeros(shape, np.float32)
        never = np.iinfo(group.step_map.dtype).max
        committed = np.where(group.step_map < 0, never, group.step_map)
        for i, (steps, valid) in enumerate(zip(committed, group.scored, strict=True)):
            firsts = segment_starts(np.unique(steps[valid]), self.segments)  # [at most K]
            segment = np.searchsorted(firsts, steps, side="right") - 1  # [L]
            hidden[: len(firsts), i] = steps >= firsts[:, None]
            weights[:, i] = valid & (segment == np.arange(self.segments)[:, None])
        prompts = [self.masked_prompt(group.prompt, mask_id, seed, group.group_id, inner)] * shape[1]
        return [
            per_completion_view(group, prompts, *view, mask_id) for view in zip(hidden, weights, strict=True)
        ]


def segment_starts(steps: NDArray[np.int32], segments: int) -> NDArray[np.int32]:
    """The first step of each segment when ``steps``, distinct and in order, are split as evenly as possible.

    The first ``len(steps) % segments`` segments get one step more; no more segments than steps.

    Example:
        >>> segment_starts(np.array([0, 1, 4, 5, 9], np.int32), 2).tolist()
        [0, 5]
    """
    size, longer = divmod(len(steps), segments)
    index = np.arange(min(segments, len(steps)))
    return steps[index * size + np.minimum(index, longer)]
