"""What an RL algorithm is: a likelihood estimator, an advantage and a policy loss, under one name.

Shapes: K views, n groups, G completions, L completion length.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from d1ray.config.settings import Named
from d1ray.diffusion.estimators import AnyEstimator
from d1ray.diffusion.estimators.estimator import Estimator
from d1ray.rl.advantage import ADVANTAGES, AdvantageName

if TYPE_CHECKING:  # settings are read where torch is not loaded
    from torch import Tensor


@dataclass(frozen=True)
class Totals:
    """Counts over the whole batch, the denominators of means: a micro-batch's loss is its part of the mean.

    ``tokens`` counts completion tokens up to the first EOS, ``view_tokens`` tokens that a view scores.
    """

    groups: int
    completions: int
    tokens: int
    view_tokens: int


class Policies(NamedTuple):
    """What the same log-probability, of a token or a completion, is under each policy (see ``Terms``)."""

    new: Tensor
    old: Tensor | None
    reference: Tensor | None
    behaviour: Tensor | None


@dataclass(frozen=True)
class Terms:
    """What a loss is computed from: n groups of G completions, scored in K views.

    Attributes:
        new: ``[K, n, G, L]`` log-probabilities under the current policy, with gradient.
        old: the same under the policy that the ratio refers to, which is the one that sampled unless
            ``behaviour`` is given; None if the algorithm does not need it.
        reference: the same under the reference policy; None if the algorithm does not need it.
        weights: ``[K, n, G, L]`` the estimator's weights; 0 where a view does not score the token.
        scored: ``[n, G, L]`` bool, True up to and including the first EOS.
        advantages: ``[n, G]``.
        totals: of the whole batch.
        behaviour: as ``old``, under the policy that sampled, where ``old`` is under a later one; else None.
        importance_cap: the largest weight pi_old / pi_behaviour; set where ``behaviour`` is.
    """

    new: Tensor
    old: Tensor | None
    reference: Tensor | None
    weights: Tensor
    scored: Tensor
    advantages: Tensor
    totals: Totals
    behaviour: Tensor | None = None
    importance_cap: float | None = None

    @property
    def lengths(self) -> Tensor:
        """``[n, G]`` completion tokens up to and including the first EOS, at least 1."""
        return self.scored.sum(-1).clamp(min=1)

    def where_scored(self, logps: Tensor) -> Tensor:
        """``[K, n, G, L]`` log-probabilities; 0 where nothing is scored, whatever stands there."""
        return logps.where(self.weights != 0, 0.0)  # where, not *: an unscored -inf must not become NaN

    def weighted(self, logps: Tensor) -> Tensor:
        """``[K, n, G, L]`` weights x log-probabilities; 0 where nothing is scored."""
        return self.where_scored(logps) * self.weights

    def under_each_policy(self, estimate: Callable[[Tensor], Tensor]) -> Policies:
        """``estimate`` of each policy's ``[K, n, G, L]`` log-probabilities; None where there are none."""
        stored = (self.old, self.reference, self.behaviour)
        return Policies(estimate(self.new), *(None if logps is None else estimate(logps) for logps in stored))


@dataclass(frozen=True)
class Loss:
    """A part of the batch's mean: parts of micro-batches (and of views) add up to the whole.

    ``total`` carries the gradient; ``metrics`` are detached scalars.
    """

    total: Tensor
    metrics: Mapping[str, Tensor]


class Algorithm(Named):
    """An algorithm and its settings. Subclasses are registered in ``d1ray.config.kinds``."""

    estimators: ClassVar[tuple[str, ...]]  # names of the estimators the loss makes sense with
    mixes_views: ClassVar[bool] = False  # True: the loss is not a sum over views
    needs_old: ClassVar[bool] = True  # False: the loss uses no log-probabilities of the sampling policy
    weighs_importance: ClassVar[bool] = False  # True: the loss heeds ``Terms.behaviour``

    estimator: AnyEstimator
    advantage: AdvantageName = Field("mean", description="what a completion's reward is compared with")

    @property
    def title(self) -> str:
        """The name in tables and figures: ``diffu_grpo`` is diffu-GRPO."""
        return self.name.replace("_grpo", "-GRPO")

    @property
    def needs_reference(self) -> bool:
        """Whether the loss uses the reference policy."""
        return False

    @abstractmethod
    def loss(self, terms: Terms) -> Loss:
        """The loss of some groups, as a part of the batch's mean.

        Unless ``mixes_views``, it is also called with some of the views only, and adds up over them.
        """

    def advantages(self, rewards: NDArray[np.float32]) -> NDArray[np.float32]:
        """Advantages ``[groups, G]`` of rewards ``[groups, G]``; exactly 0 in a group of equal rewards."""
        return ADVANTAGES[self.advantage](rewards)

    @model_validator(mode="before")
    @classmethod
    def _default_estimator(cls, values: Any) -> Any:
        """``estimator: {samples: 4}`` changes the algorithm's own estimator and keeps its other options."""
        if not isinstance(values, Mapping) or not isinstance(values.get("estimator"), Mapping | str):
            return values
        given, own = values["estimator"], cls.model_fields["estimator"].default
        options = {"name": given} if isinstance(given, str) else given
        if options.get("name", own.name) != own.name:
            return values
        return {**values, "estimator": {**own.model_dump(), **options}}

    @field_validator("estimator")
    @classmethod
    def _fits(cls, estimator: Estimator) -> Estimator:
        if estimator.name not in cls.estimators:
            raise ValueError(
                f"estimator.name: {cls.model_fields['name'].default} does not work with {estimator.name!r}; "
                f"use {' or '.join(cls.estimators)}"
            )
        return estimator
