"""Call: one request's life in the rollout buffer, as a state machine, and the tries it took."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import ray

from actors.failures import Kind
from actors.policy import PolicyRef
from d1ray.rl.rollout import Request


class Status(Enum):
    """Where a call is::

        WAITING ---> GENERATING ---> SCORING ---> SCORED ---> TAKEN ---> RELEASED
          ^ |            |              |                     ^ |
          | |            +------+-------+                     | |
          | |                   | the try ended badly         | |
          | +-----> DROPPED <---+ (``retry.answer``)          | |
          |            |        |                             | |
          |            +--------|-----------------------------+ |
          +---------------------+<------------------------------+
                   again                  its table was lost

    How a try ended badly is its ``Kind``: lost, no room, of the device, of the group.
    """

    WAITING = "waiting for a generator"
    GENERATING = "generating"
    SCORING = "scoring"
    SCORED = "scored"
    TAKEN = "taken"
    RELEASED = "released"
    DROPPED = "dropped"


# What may be due to the place, and not to the call.
ITS_PLACE_S = frozenset({Kind.DEVICE, Kind.MEMORY, Kind.SYSTEM, Kind.GROUP})
NEXT: Mapping[Status, frozenset[Status]] = {
    Status.WAITING: frozenset({Status.GENERATING}),
    Status.GENERATING: frozenset({Status.SCORING, Status.SCORED, Status.WAITING, Status.DROPPED}),
    Status.SCORING: frozenset({Status.SCORED, Status.WAITING, Status.DROPPED}),
    Status.SCORED: frozenset({Status.TAKEN}),
    Status.DROPPED: frozenset({Status.TAKEN}),
    Status.TAKEN: frozenset({Status.RELEASED, Status.WAITING}),
    Status.RELEASED: frozenset(),
}


@dataclass(frozen=True)
class Try:
    """One that ended badly: where, of what, what was said, and when (``time.monotonic``)."""

    generator: int
    scorer: int
    scoring: bool  # whether it had been generated
    kind: Kind
    said: str
    at: float


@dataclass(eq=False)
class Call:
    """One request under way: generate, then score."""

    request: Request
    policy: PolicyRef | None  # until it is released: whoever names a policy keeps it in the object store
    status: Status = Status.WAITING
    tries: list[Try] = field(default_factory=list)
    done_before: int = 0  # other calls that had ended well when its first try began
    generator: int = -1
    scorer: int = -1
    loads: PolicyRef | None = None  # the objects that the try under way takes the policy from
    since: float = 0.0  # when its present stage began
    overdue: str = ""  # which actor was killed because it did not end its try
    generated: ray.ObjectRef | None = None  # what generation says of the try under way
    table: ray.ObjectRef | None = None
    metadata: dict[str, Any] = field(default_factory=dict)  # empty until the group is scored
    dropped: str = ""  # why it was given up

    @property
    def name(self) -> str:
        return f"group {self.request.prompts[0].group_id}"

    @property
    def over(self) -> bool:
        return self.status in (Status.SCORED, Status.DROPPED)

    def becomes(self, status: Status) -> None:
        """The only way from one state to another."""
        assert status in NEXT[self.status], f"{self.name} cannot become {status.value}: {self.status.value}"
        self.status = status

    def count(self, *kinds: Kind) -> int:
        """How many tries ended so."""
        return sum(one.kind in kinds for one in self.tries)

    def failed_at(self, scoring: bool) -> set[int]:
        """The scorers, or else the generators, at which tries ended badly that may go well elsewhere."""
        tries = [one for one in self.tries if one.scoring is scoring and one.kind in ITS_PLACE_S]
        return {one.scorer if scoring else one.generator for one in tries}
