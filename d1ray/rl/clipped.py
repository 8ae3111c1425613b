"""PPO's clipped surrogate and two estimates of the KL: what several losses are made of.

With l a log-probability, of a token in one view or of a completion (then per token, n = its length):

    rho = exp((l_new - l_old) / n)                                              ``likelihood_ratio``
    J   = min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A)                    ``clipped_surrogate``
    w   = min(C, exp((l_old - l_behaviour) / n)),  1 if the old policy sampled  ``truncated_importance``
    k3  = exp(y) - y - 1,  y = l_ref - l_new      (unbiased, never negative)
    k2  = y^2 / 2                                 (its gradient in l_new is l_new - l_ref)

``exp`` of rho and k3 is continued by its tangent beyond ``LOG_RATIO_LIMIT``: one outlier cannot overflow to
inf and cost the whole update, and yet a bad token that became far too likely is still pushed back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat

from d1ray.rl.algorithm import Algorithm, Loss, Policies

if TYPE_CHECKING:
    from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # e^20 = 4.9e8: far beyond any clip range, far below what fp32 sums can hold


class Clipped(Algorithm):
    """The settings of a loss beta KL - w J."""

    weighs_importance: ClassVar[bool] = True

    epsilon: PositiveFloat = Field(0.2, description="PPO clip range")
    beta: NonNegativeFloat = Field(0.01, description="weight of the KL to the reference")

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0


def bounded_exp(x: Tensor) -> Tensor:
    """exp(x) up to ``LOG_RATIO_LIMIT``, from there on its tangent: convex, increasing and finite."""
    beyond = x > LOG_RATIO_LIMIT  # fill, not clamp: clamp's gradient would hide a NaN
    return x.masked_fill(beyond, LOG_RATIO_LIMIT).exp() * (1 + x - LOG_RATIO_LIMIT).where(beyond, 1.0)


def log_ratio(*, new: Tensor, old: Tensor | None, length: Tensor | int = 1) -> Tensor:
    """(l_new - l_old) / n."""
    return (new - _found(old, "old")) / length


def likelihood_ratio(*, new: Tensor, old: Tensor | None, length: Tensor | int = 1) -> Tensor:
    """rho = exp((l_new - l_old) / n)."""
    return bounded_exp(log_ratio(new=new, old=old, length=length))


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float | None = None
) -> tuple[Tensor, Tensor]:
    """J of ratios, and 1.0 where J is flat in the ratio, i.e. where the policy gradient is cut.

    ``epsilon_high`` is how far above 1 a ratio may rise, if not as far as it may fall below.
    """
    low, high = 1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high)
    beyond = (ratio > high).where(advantages > 0, ratio < low) & (advantages != 0)
    return (ratio * advantages).minimum(ratio.clamp(low, high) * advantages), beyond.float()


def truncated_importance(
    logps: Policies, cap: float | None, length: Tensor | int = 1
) -> tuple[Tensor | float, dict[str, Tensor]]:
    """w, and as metrics w and 1.0 where ``cap`` cuts it; 1.0 and no metrics if the old policy sampled.

    Decoupled PPO (arXiv 2110.00641; AReaL, arXiv 2505.24298): the clip keeps the policy near the one before
    the step, and w makes up for the samples being an older one's. Truncation bounds the variance, at a bias;
    AReaL's code leaves out what is above the cap instead.
    """
    if logps.behaviour is None:
        return 1.0, {}
    assert cap is not None
    ratio = (_found(logps.old, "old") / length - logps.behaviour / length).exp()
    weight = ratio.clamp(max=cap)
    return weight, {"importance_mean": weight, "importance_truncated": (ratio > cap).float()}


def k3(new: Tensor, reference: Tensor | None) -> Tensor:
    """exp(l_ref - l_new) - (l_ref - l_new) - 1."""
    away = _found(reference, "reference") - new
    return bounded_exp(away) - away - 1


def k2(new: Tensor, reference: Tensor | None) -> Tensor:
    """(l_new - l_ref)^2 / 2."""
    return (new - _found(reference, "reference")).square() / 2


def mean_loss(
    values: Tensor, metrics: Mapping[str, Tensor], *, over: Tensor, total: int, each: Tensor | int = 1
) -> Loss:
    """(1 / total) sum over the tokens ``over`` of value / each, of the loss and of every metric.

    Args:
        values: of tokens.
        metrics: likewise, under their names.
        over: bool, the tokens that count; values elsewhere are ignored.
        total: means in the whole batch; or tokens, where all are averaged at once and ``each`` is 1.
        each: the tokens of a token's own mean, broadcast to ``over``.
    """

    def mean(values: Tensor) -> Tensor:
        return (values.where(over, 0.0) / each).sum() / total

    return Loss(mean(values), {name: mean(value.detach()) for name, value in metrics.items()})


def _found(logps: Tensor | None, whose: str) -> Tensor:
    if logps is None:
        raise ValueError(f"the loss needs {whose} log-probabilities, and there are none")
    return logps
