"""What token-level algorithms share: PPO's clipped ratio and a k3 KL of each token (``d1ray.rl.clipped``).

They differ in the estimator, in the policy that the KL refers to, and in how tokens are averaged.
"""

from typing import ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from d1ray.rl.algorithm import Algorithm, Loss, Terms
from d1ray.rl.clipped import clipped_loss, truncated_importance


class TokenClipped(Algorithm):
    """Token-level clipped policy optimisation."""

    weighs_importance: ClassVar = True

    epsilon: PositiveFloat = Field(0.2, description="PPO clip range")
    beta: NonNegativeFloat = Field(0.01, description="weight of the k3 KL to the reference")

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    def token_logps(self, terms: Terms, logps: Tensor) -> Tensor:
        """What ratios and KL are taken of: every view's ``[K, n, G, L]`` by itself, unless overridden."""
        return logps

    def mean_loss(self, terms: Terms, scored: Tensor, count: Tensor | int, total: int) -> Loss:
        """(1 / total) sum over tokens of (beta KL - w J) / count, with ``kl`` and ``clip_fraction`` likewise;
        where tokens are weighted, also the mean weight and the share of weights that are cut.

        Args:
            scored: bool, as ``token_logps`` returns.
            count: what each token's value is divided by, broadcast to ``scored``: the tokens of its own mean.
            total: means in the whole batch; or tokens, where all are averaged at once and ``count`` is 1.
        """

        def logps(stored: Tensor | None) -> Tensor | None:
            return None if stored is None else self.token_logps(terms, stored)

        def mean(values: Tensor) -> Tensor:
            return (values / count).sum() / total

        new, old, behaviour = self.token_logps(terms, terms.new), logps(terms.old), logps(terms.behaviour)
        assert old is not None
        importance, metrics = None, {}
        if behaviour is not None:
            assert terms.importance_cap is not None
            importance, cut = truncated_importance(old, behaviour, terms.importance_cap)
            importance = torch.where(scored, importance, 0.0)
            metrics = {"importance_mean": mean(importance), "importance_truncated": mean(cut * scored)}
        parts = clipped_loss(
            new,
            old,
            logps(terms.reference),
            terms.advantages[..., None],
            scored,
            self.epsilon,
            self.epsilon,
            self.beta,
            importance,
        )
        metrics |= {"kl": mean(parts.kl), "clip_fraction": mean(parts.clipped)}
        return Loss(mean(parts.loss), metrics)
