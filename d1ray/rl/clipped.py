"""PPO's clipped surrogate and two estimates of the KL: what several losses are made of.

With a log-ratio x = l_new - l_old, of a token in one view or of a sequence:

    rho = exp(x)
    J   = min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A)
    k3  = exp(y) - y - 1,  y = l_ref - l_new       (per token: unbiased, never negative)
    k2  = y^2 / 2                                  (its gradient in l_new is l_new - l_ref)
    w   = min(C, exp(l_old - l_behaviour))         (no gradient; weighs J where l_old is not of who sampled)

``exp`` is continued by its tangent beyond ``LOG_RATIO_LIMIT``: one outlier cannot overflow to inf and
cost the whole update, and yet a bad token that became far too likely is still pushed back.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # e^20 = 4.9e8: far beyond any clip range, far below what fp32 sums can hold


def bounded_exp(x: Tensor) -> Tensor:
    """exp(x) up to ``LOG_RATIO_LIMIT``, from there on its tangent: convex, increasing and finite."""
    beyond = x > LOG_RATIO_LIMIT  # where, not clamp: clamp's gradient would hide a NaN
    return torch.where(beyond, LOG_RATIO_LIMIT, x).exp() * torch.where(beyond, 1 + x - LOG_RATIO_LIMIT, 1.0)


def k3(new: Tensor, reference: Tensor) -> Tensor:
    """exp(ref - new) - (ref - new) - 1."""
    away = reference - new
    return bounded_exp(away) - away - 1


def k2(new: Tensor, reference: Tensor) -> Tensor:
    """(new - ref)^2 / 2."""
    return (new - reference).square() / 2


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, epsilon_low: float, epsilon_high: float
) -> tuple[Tensor, Tensor]:
    """J of ratios, and 1.0 where J is flat in the ratio, i.e. where the policy gradient is cut."""
    limited = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    beyond = torch.where(advantages > 0, ratio > 1 + epsilon_high, ratio < 1 - epsilon_low)
    return torch.minimum(ratio * advantages, limited * advantages), (beyond & (advantages != 0)).float()


def truncated_importance(old: Tensor, behaviour: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """w of log-probabilities, and 1.0 where ``cap`` cuts it.

    Decoupled PPO (arXiv 2110.00641; AReaL, arXiv 2505.24298): the clip keeps the policy near the one before
    the step, and w makes up for the samples being an older one's. Truncation bounds the variance, at a bias;
    AReaL's code leaves out what is above the cap instead.
    """
    weight = (old - behaviour).exp()
    return weight.clamp(max=cap), (weight > cap).float()


@dataclass(frozen=True)
class ClippedLoss:
    """Per-token values, 0 where nothing is scored. ``loss`` carries the gradient, the others are detached.

    ``clipped`` is 1 where the ratio is clipped, i.e. where the policy gradient is zero.
    """

    loss: Tensor
    kl: Tensor
    clipped: Tensor


def clipped_loss(
    new: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    scored: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    beta: float,
    importance: Tensor | None = None,
) -> ClippedLoss:
    """The loss beta k3 - w J of every token, all arguments broadcast together.

    Args:
        new: log-probabilities under the current policy, with gradient.
        old: under the policy that the ratio refers to, same view.
        reference: under the reference; may be None when ``beta`` is 0.
        advantages: of the completions.
        scored: bool; values elsewhere are ignored, even if they are not finite.
        epsilon_low: how far below 1 a ratio may fall.
        epsilon_high: how far above 1 a ratio may rise.
        beta: KL weight.
        importance: w; None is 1 everywhere.
    """
    new = torch.where(scored, new, 0.0)  # where, not *: an unscored -inf must not become NaN
    ratio = bounded_exp(new - torch.where(scored, old, 0.0))
    surrogate, clipped = clipped_surrogate(ratio, advantages, epsilon_low, epsilon_high)
    if importance is not None:
        surrogate = importance * surrogate
    kl = torch.zeros_like(ratio)
    if beta > 0:
        if reference is None:
            raise ValueError("beta > 0 needs reference log-probabilities")
        kl = k3(new, torch.where(scored, reference, 0.0))
    return ClippedLoss(
        loss=torch.where(scored, beta * kl - surrogate, 0.0), kl=kl.detach(), clipped=clipped * scored
    )
