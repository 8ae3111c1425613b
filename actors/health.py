"""Health of the actor at a place: how often it fails, and what that calls for. Nothing here knows Ray."""

from dataclasses import dataclass

STRIKES = 3  # in a row, of one actor, until it is put away
STARTS = 3  # that may fail at every place of a pool while none has ever come up
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 60.0


@dataclass
class Health:
    """What is known of a place's actor.

    A strike is an error of its device, or a group that failed there and went well elsewhere. One call that
    ends well takes all strikes back.
    """

    strikes: int = 0
    struck_at_start: int = -1  # of which process: what it does after a strike says nothing new
    failed_starts: int = 0  # constructors in a row that have raised
    quarantined: bool = False  # for good: it gets no more work

    @property
    def is_fit(self) -> bool:
        """Whether it may get work, now or once it has started."""
        return not self.quarantined and not self.failed_starts

    def went_well(self) -> None:
        self.strikes = 0

    def came_up(self) -> None:
        self.failed_starts = 0

    def strike(self, start: int | None, others: int, floor: int) -> bool:
        """Counts one, unless the process that came up as the ``start``-th has one, if that is given. Whether
        it quarantines the place: not if fewer than ``floor`` others are left."""
        self.strikes += start is None or start != self.struck_at_start
        self.struck_at_start = self.struck_at_start if start is None else start
        self.quarantined = self.quarantined or (self.strikes >= STRIKES and others >= floor)
        return self.quarantined

    def backoff_s(self) -> float:
        """How long to wait before the next start, after one more that failed: twice as long each time."""
        self.failed_starts += 1
        return float(min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (self.failed_starts - 1)))
