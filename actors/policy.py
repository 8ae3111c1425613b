"""PolicyRef: the weights as an argument of every generate call."""

from dataclasses import dataclass
from pathlib import Path

import ray
from torch import nn

from d1ray.models import load_model
from d1ray.models.weights import copy_into


@dataclass(frozen=True)
class Weights:
    """One set of weights, wherever it lies: object-store buckets, or a model folder on shared storage."""

    version: int
    buckets: tuple[ray.ObjectRef, ...] = ()
    folder: Path | None = None

    def load_into(self, model: nn.Module, timeout_s: float) -> None:
        """Copies the weights into ``model``; never binds memory that other processes share."""
        if self.folder is not None:
            model.load_state_dict(load_model(self.folder).state_dict())
            return
        for bucket in self.buckets:
            copy_into(model, ray.get(bucket, timeout=timeout_s))


@dataclass(frozen=True)
class PolicyRef:
    """A policy and its reference, as a generator needs them.

    ``incarnation`` rises when the learner is rebuilt, so that a rollout of a rolled-back future is
    told apart from one of the same version number. The driver owns the buckets.
    """

    incarnation: int
    policy: Weights
    reference: Weights | None = None

    @property
    def version(self) -> int:
        return self.policy.version


def policy_of_folder(folder: Path) -> PolicyRef:
    """The policy stored in a model folder, for evaluation."""
    return PolicyRef(incarnation=0, policy=Weights(version=0, folder=folder))
