"""The likelihood estimators an algorithm can name. A new one is one file here and one line below."""

from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from d1ray.config.exports import on_demand
from d1ray.config.registry import Kinds
from d1ray.diffusion.estimators.estimator import Estimator

ESTIMATORS: Kinds[Estimator] = Kinds(
    "estimator",
    {
        "one_step": "d1ray.diffusion.estimators.one_step:OneStep",
        "random_ratio": "d1ray.diffusion.estimators.random_ratio:RandomRatio",
        "coupled": "d1ray.diffusion.estimators.coupled:Coupled",
        "elbo": "d1ray.diffusion.estimators.elbo:Elbo",
        "block_bounds": "d1ray.diffusion.estimators.block_bounds:BlockBounds",
        "trajectory": "d1ray.diffusion.estimators.trajectory:Trajectory",
    },
)


def load_estimator(value: Any) -> Estimator:
    """Makes an estimator from its name or from ``{"name": NAME, option: value, ...}``.

    Raises ``ValueError`` with one line that begins with the wrong key, e.g. ``estimator.samples: ...``.

    Example:
        >>> load_estimator({"name": "one_step", "prompt_mask_prob": 0.3}).prompt_mask_prob
        0.3
    """
    return ESTIMATORS.load(value)


AnyEstimator = Annotated[SerializeAsAny[Estimator], BeforeValidator(load_estimator)]

__getattr__ = on_demand(
    {
        "diffusion.estimators.block_bounds": "BlockBounds",
        "diffusion.estimators.coupled": "Coupled",
        "diffusion.estimators.elbo": "Elbo",
        "diffusion.estimators.estimator": "Group GroupView",
        "diffusion.estimators.one_step": "OneStep",
        "diffusion.estimators.random_ratio": "RandomRatio",
        "diffusion.estimators.trajectory": "Trajectory",
    }
)
