"""PolicyRef: the weights as an argument of every generate call."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from torch import Tensor

from actors.failures import fetched
from d1ray.config.lora import LoRAConfig
from d1ray.models.weights import Bucket, copy_into


@dataclass(frozen=True)
class Parcel:
    """One bucket of weights, and whose it is: of which learner's incarnation, at which version."""

    incarnation: int
    version: int
    bucket: Bucket


@dataclass(frozen=True)
class Weights:
    """One set of weights, wherever it lies: parcels in the object store, or a folder on shared storage.

    With ``lora`` the parcels hold an adapter of the model that the generators start from.
    """

    version: int
    parcels: tuple[ray.ObjectRef, ...] = ()
    folder: Path | None = None
    lora: LoRAConfig | None = None

    def copy_into(self, tensors: Mapping[str, Tensor], incarnation: int, timeout_s: float) -> None:
        """Copies the parcels into ``tensors``; never binds memory that other processes share.

        Raises:
            RuntimeError: a parcel is of other weights than these.
            ObjectsLost, NoRoom: a parcel cannot be had.
        """
        for ref in self.parcels:
            parcel: Parcel = fetched(ref, timeout_s, f"weights {incarnation}.{self.version}")
            if (parcel.incarnation, parcel.version) != (incarnation, self.version):
                got = f"{parcel.incarnation}.{parcel.version}"
                raise RuntimeError(f"asked for weights {incarnation}.{self.version}, got {got}")
            copy_into(tensors, parcel.bucket)


@dataclass(frozen=True)
class PolicyRef:
    """A policy and its reference, as a generator needs them.

    ``incarnation`` rises when the learner is rebuilt, so that a rollout of a rolled-back future is
    told apart from one of the same version number. The driver owns the parcels.
    """

    incarnation: int
    policy: Weights
    reference: Weights | None = None

    @property
    def version(self) -> int:
        return self.policy.version

    def renewed(self) -> "PolicyRef":
        """The same weights as other objects, for a node that had no room for these (``NoRoom``)."""
        copy = ray.remote(num_cpus=0)(_itself)

        def anew(weights: Weights) -> Weights:
            return replace(weights, parcels=tuple(copy.remote(ref) for ref in weights.parcels))

        return replace(self, policy=anew(self.policy), reference=self.reference and anew(self.reference))


def _itself(parcel: Parcel) -> Parcel:
    return parcel


def policy_of_folder(folder: Path) -> PolicyRef:
    """The policy stored in a model folder, for evaluation."""
    return PolicyRef(incarnation=0, policy=Weights(version=0, folder=folder))
