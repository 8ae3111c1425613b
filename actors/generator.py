"""Generator: samples rollouts under the policy it is handed."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from actors.policy import PolicyRef, Weights
from d1ray.models import LLaDA, load_model, load_tokenizer
from d1ray.rl.rollout import Request, generate


class Generator:
    """Holds a policy and a reference model; loads whichever weights a call's PolicyRef names.

    First start, weight sync, restart after a crash and joining later are this one code path.
    """

    def __init__(self, folder: Path, threads: int, deadline_s: float):
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.folder, self.deadline_s = folder, deadline_s
        self.tokenizer = load_tokenizer(folder)
        self.model = load_model(folder).to(self.device)
        self.reference: LLaDA | None = None
        self.loaded: dict[str, tuple[int, int, Path | None]] = {}

    def generate(self, request: Request, policy: PolicyRef) -> tuple[pa.Table, dict[str, Any]]:
        """Runs a request under ``policy``.

        Returns:
            The ``schema.GENERATED`` table, and small metadata: seconds spent loading weights.
        """
        started = time.perf_counter()
        self._load("policy", self.model, policy.incarnation, policy.policy)
        if policy.reference is not None and request.likelihoods is not None:
            if self.reference is None:
                self.reference = load_model(self.folder).to(self.device)
            self._load("reference", self.reference, policy.incarnation, policy.reference)
        seconds_load = time.perf_counter() - started
        reference = self.reference if policy.reference is not None else None
        table = generate(self.model, reference, self.tokenizer, request, policy.incarnation, policy.version)
        return table, {"seconds_load": seconds_load}

    def _load(self, role: str, model: LLaDA, incarnation: int, weights: Weights) -> None:
        wanted = (incarnation, weights.version, weights.folder)
        if self.loaded.get(role) != wanted:
            self.loaded.pop(role, None)  # half-copied weights must not pass for loaded ones
            weights.load_into(model, self.deadline_s)
            self.loaded[role] = wanted

    def __repr__(self) -> str:
        return "Generator"
