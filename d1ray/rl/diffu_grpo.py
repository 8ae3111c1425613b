"""The diffu-GRPO loss (d1, arXiv 2504.12216, Eq. 3): PPO's clipped ratio and a k3 KL to the reference.

With one-step log-probabilities l = log pi(o_k | q') under the same masked prompt q':

    rho   = exp(l_new - l_old)
    J_k   = min(rho A, clip(rho, 1 - eps, 1 + eps) A)
    KL_k  = exp(l_ref - l_new) - (l_ref - l_new) - 1          (k3: unbiased, never negative)
    loss  = - sum_k (J_k - beta KL_k) / number of tokens

Tokens after the first EOS do not count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """Sums over tokens; divide by the batch's token count for means.

    ``total`` carries the gradient. ``clipped`` counts tokens whose ratio is clipped, i.e. whose
    policy gradient is zero. ``gap`` is the sum of |l_new - l_old|.
    """

    total: Tensor
    kl: Tensor
    clipped: Tensor
    gap: Tensor


def diffu_grpo_loss(
    new: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    scored: Tensor,
    epsilon: float,
    beta: float,
) -> Loss:
    """The summed loss of N completions.

    Args:
        new: ``[N, L]`` log-probabilities under the current policy, with gradient.
        old: ``[N, L]`` under the policy that sampled, same prompt mask.
        reference: ``[N, L]`` under the reference; may be None when ``beta`` is 0.
        advantages: ``[N]``.
        scored: ``[N, L]`` bool, True up to and including the first EOS.
        epsilon: clip range.
        beta: KL weight.
    """
    log_ratio = torch.where(scored, new - old, 0.0)  # where, not *: an unscored -inf must not become NaN
    ratio = log_ratio.exp()
    advantage = advantages[:, None]
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)
    kl = torch.zeros_like(ratio)
    if beta > 0:
        if reference is None:
            raise ValueError("beta > 0 needs reference log-probabilities")
        away = torch.where(scored, reference - new, 0.0)
        kl = away.exp() - away - 1
    clipped = torch.where(advantage > 0, ratio > 1 + epsilon, ratio < 1 - epsilon) & (advantage != 0)
    return Loss(
        total=torch.where(scored, beta * kl - surrogate, 0.0).sum(),
        kl=kl.detach().sum(),
        clipped=(clipped & scored).sum(),
        gap=log_ratio.detach().abs().sum(),
    )
