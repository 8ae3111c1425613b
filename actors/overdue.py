"""Overdue: actors that work on one call for too long are killed; Ray starts them again."""

import time
from collections.abc import Iterable

from actors.call import Call, Status
from actors.pool import Pool

LOOKS = 20  # in the time of a deadline


class Overdue:
    """Kills those that do not end a call within ``deadline_s``, or a call that nobody waits for any more."""

    def __init__(self, generators: Pool, scorers: Pool, deadline_s: float):
        self.generators, self.scorers, self.deadline_s = generators, scorers, deadline_s
        self.killed = 0
        self._look_at = 0.0

    def kill(self, running: Iterable[Call]) -> None:
        """Looks at ``running`` if the last look is a while ago; says in each call who was killed for it."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + self.deadline_s / LOOKS
        for call in running:
            scoring = call.status is Status.SCORING
            pool, index = (self.scorers, call.scorer) if scoring else (self.generators, call.generator)
            if now - max(call.since, pool.places[index].progress) > self.deadline_s:
                self.killed += pool.restart(index)
                call.overdue = (
                    f"{'scorer' if scoring else 'generator'} {index} did not end it within "
                    f"{self.deadline_s:g} s (cluster.deadline_s) and was killed"
                )
        for index in self.generators.stalled(self.deadline_s):
            self.killed += self.generators.restart(index)
