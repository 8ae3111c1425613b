"""Generator: samples rollouts under the policy it is handed."""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import torch
from torch import Tensor

from actors.broadcast import Circle, Member
from actors.failures import Kind, kind_of
from actors.policy import PolicyRef, Weights
from d1ray.config.lora import LoRAConfig
from d1ray.models.load import load_model
from d1ray.models.lora import POLICY, REFERENCE, adapter_tensors, add_lora, has_lora, using_adapter
from d1ray.models.model import DiffusionLM
from d1ray.models.tokenizer import load_tokenizer
from d1ray.models.weights import live_tensors
from d1ray.rl.rollout import Request, generate

Key: TypeAlias = tuple[int, int, Path | None, LoRAConfig | None]


class Generator:
    """Holds a policy and a reference model; loads whichever weights a call's PolicyRef names.

    First start, weight sync, restart after a crash and joining later are this one code path. A
    ``colocated`` one shares its GPU: it starts beside it, uses it from a call to ``generate`` to the next
    ``rest``, and keeps its weights on the CPU meanwhile. ``place`` is its own in the pool.
    """

    def __init__(
        self,
        folder: Path,
        threads: int,
        deadline_s: float,
        precision: str = "fp32",
        colocated: bool = False,
        place: int = -1,
    ):
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.folder, self.deadline_s, self.place = folder, deadline_s, place
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.tokenizer = load_tokenizer(folder)
        self.model = load_model(folder, self.dtype, "cpu" if colocated else self.device)
        self.source = folder  # of self.model's own weights, which a LoRA policy adapts
        self.overwritten = False  # whether parcels took the place of those weights
        self.reference: DiffusionLM | None = None
        self.loaded: dict[str, Key] = {}  # by role; an adapter is that of self.model
        self.fetched = 0  # parcels
        self.parts = 1  # of a request, for want of memory
        self.member = Member()

    def generate(self, request: Request, policy: PolicyRef) -> tuple[pa.Table, dict[str, Any]]:
        """Runs a request under ``policy``.

        Returns:
            The ``schema.GENERATED`` table, and small metadata: seconds spent loading weights, and how
            many parcels of them were fetched; in how many parts it was sampled; how far fast decoding was
            from exact decoding, where that was measured.
        """
        started = time.perf_counter()
        self._move(self.device)
        before = self.fetched
        self._load_policy(policy.incarnation, policy.policy)
        self._reference_for(request, policy)
        seconds_load = time.perf_counter() - started
        table, notes = self._in_parts(request, policy, seconds_load)
        notes |= {"fetched_parcels": self.fetched - before, "parts": self.parts}
        return table, {"seconds_load": seconds_load, **notes}

    def _in_parts(
        self, request: Request, policy: PolicyRef, seconds_load: float
    ) -> tuple[pa.Table, dict[str, Any]]:
        """In twice as many parts after each time that the memory was too small, to the single completion."""
        rows = len(request.prompts) * request.rollouts
        self.parts = min(rows, max(self.parts, request.parts))
        while True:
            try:
                return generate(
                    self.model,
                    self._reference_for(request, policy),
                    self.tokenizer,
                    replace(request, parts=self.parts),
                    policy.incarnation,
                    policy.version,
                    self.place,
                    seconds_load,
                )
            except (RuntimeError, MemoryError) as error:
                if kind_of(error) is not Kind.MEMORY or self.parts >= rows:
                    raise
                self.parts = min(2 * self.parts, rows)
            torch.cuda.empty_cache()  # here, where the error no longer holds the frames that used it up

    def receive(self, circle: Circle, rank: int, incarnation: int, weights: Weights) -> tuple[None, None]:
        """Receives a whole policy's ``weights`` from a broadcast. Where that fails it raises, and the next
        call fetches them as if nothing had been sent."""
        if has_lora(self.model) or self.source != self.folder:
            raise ValueError("a broadcast is for generators that hold the run's model without an adapter")
        self.loaded.pop(POLICY, None)
        self.overwritten = True
        self.member.receive(circle, rank, list(live_tensors(self.model).values()))
        self.loaded[POLICY] = _key(incarnation, weights)
        return None, None

    def rest(self) -> tuple[None, None]:
        """Leaves the GPU."""
        self._move(torch.device("cpu"))
        torch.cuda.empty_cache()
        return None, None

    def _move(self, device: torch.device) -> None:
        self.model.to(device)
        if self.reference is not None:
            self.reference.to(device)

    def _load_policy(self, incarnation: int, weights: Weights) -> None:
        if self.loaded.get(POLICY) == _key(incarnation, weights):
            return
        self.loaded.pop(POLICY, None)  # half-copied weights must not pass for loaded ones
        source, full = weights.folder or self.folder, weights.lora is None
        replaces = full and weights.parcels  # everything, so it does not matter what was there
        stale = (self.overwritten and not replaces) or (full and has_lora(self.model))
        if self.source != source or stale:
            self.model, self.source, self.overwritten = (
                load_model(source, self.dtype, self.device),
                source,
                False,
            )
            self.loaded.clear()  # a reference adapter went with the model
        if weights.lora is not None:
            self._fetch(weights, incarnation, self._adapter(POLICY, weights.lora))
        elif weights.parcels:
            self.overwritten = True
            self._fetch(weights, incarnation, live_tensors(self.model))
        self.loaded[POLICY] = _key(incarnation, weights)

    def _reference_for(
        self, request: Request, policy: PolicyRef
    ) -> AbstractContextManager[DiffusionLM] | None:
        """Gives the reference for the time of a block; it is loaded now. None if nobody asks for it."""
        if policy.reference is None or request.likelihoods is None:
            return None
        return self._load_reference(policy.incarnation, policy.reference)

    def _load_reference(self, incarnation: int, weights: Weights) -> AbstractContextManager[DiffusionLM]:
        """Another adapter beside the policy's, or another model."""
        current = self.loaded.get(REFERENCE) == _key(incarnation, weights)
        if not current:
            self.loaded.pop(REFERENCE, None)
        if weights.lora is not None:
            if not has_lora(self.model):
                raise ValueError("a reference adapter needs a policy that is an adapter of the same model")
            if not current:
                self._fetch(weights, incarnation, self._adapter(REFERENCE, weights.lora))
        elif not current:
            if self.reference is None or not weights.parcels:
                self.reference = load_model(weights.folder or self.folder, self.dtype, self.device)
            self._fetch(weights, incarnation, live_tensors(self.reference))
        self.loaded[REFERENCE] = _key(incarnation, weights)
        if weights.lora is not None:
            return using_adapter(self.model, REFERENCE)
        assert self.reference is not None
        return nullcontext(self.reference)

    def _fetch(self, weights: Weights, incarnation: int, tensors: dict[str, Tensor]) -> None:
        weights.copy_into(tensors, incarnation, self.deadline_s)
        self.fetched += len(weights.parcels)

    def _adapter(self, name: str, config: LoRAConfig) -> dict[str, Tensor]:
        if not adapter_tensors(self.model, name):
            add_lora(self.model, config, name=name)
        return adapter_tensors(self.model, name)

    def __repr__(self) -> str:
        return f"Generator(place={self.place})"


def _key(incarnation: int, weights: Weights) -> Key:
    """Tells weights apart without holding on to their buckets."""
    return incarnation, weights.version, weights.folder, weights.lora
