"""Pool: identical actors that come and go, with work given to whoever is free and well."""

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.failures import ACTOR_LOST, Kind, RolloutError, kind_of, one_line
from actors.health import STARTS, Health
from actors.watch import Watch

ASK_EVERY_S = 0.2  # an actor that is restarting, whether it is up


class Place:
    """One of a pool's, and the actor that holds it now."""

    def __init__(self, actor: ActorHandle):
        self.actor = actor
        self.up = False
        self.starts = 0  # how often an actor came up
        self.calls = 0  # under way
        self.progress = time.monotonic()  # when an actor last began or ended something
        self.asked = False  # whether it is up
        self.ask_at = 0.0  # when to ask, or to create it anew
        self.lacks_actor = False  # its constructor has raised
        self.paused_until = 0.0  # its node has no room, or it has to get well
        self.health = Health()


class Pool:
    """Actors that Ray restarts without end. Only those that are up are given work.

    More may be asked for than there is room for: the others stay pending, which makes an autoscaler add
    nodes, and join when they start. One whose constructor raises is created again, later and later; one
    that keeps failing is put away (``actors.health``). A call is two return values: a large one that stays
    in the object store, and small metadata.

    Args:
        create: makes the actor of a place, with ``max_restarts=-1`` and ``max_task_retries=0``: a lost call
            is for the caller to give to somebody else.
        size: how many.
        watch: tells of what has ended; its turns are the caller's.
        title: of an actor, in notes.
        floor: so many places are not put away, whatever their actors do.
        note: is told what a user should know.

    Attributes:
        why: what the last constructor that failed said.
    """

    def __init__(
        self,
        create: Callable[[int], ActorHandle],
        size: int,
        watch: Watch | None = None,
        title: str = "actor",
        floor: int = 1,
        note: Callable[[str], None] = lambda text: None,
    ):
        self._create, self.watch, self.title = create, watch or Watch(), title
        self.floor, self.note, self.why = floor, note, ""
        self.places = [Place(create(index)) for index in range(size)]
        for index in range(size):
            self._ask(index)

    @property
    def actors(self) -> list[ActorHandle]:
        """Of all places."""
        return [place.actor for place in self.places]

    @property
    def up(self) -> list[bool]:
        """By place, whether its actor is up."""
        return [place.up for place in self.places]

    @property
    def alive(self) -> list[int]:
        """Indices of the actors that are up, or were up and start again."""
        return [i for i, place in enumerate(self.places) if place.starts and place.health.is_fit]

    @property
    def starts(self) -> list[int]:
        """By place, how often an actor came up."""
        return [place.starts for place in self.places]

    def refresh(self) -> None:
        """Notices which calls have ended, and which actors have started.

        Raises:
            RolloutError: no actor can start: every constructor failed again and again.
        """
        self.watch.turn()
        self.tend()

    def tend(self) -> None:
        """Asks actors that are restarting whether they are up, and creates those anew that could not start.

        Raises:
            RolloutError: as ``refresh``.
        """
        now = time.monotonic()
        for index, place in enumerate(self.places):
            if place.up or place.asked or place.health.quarantined or now < place.ask_at:
                continue
            if place.lacks_actor:
                try:
                    place.actor = self._create(index)
                except ValueError:  # the name of the one before is not free yet
                    place.ask_at = now + ASK_EVERY_S
                    continue
                place.lacks_actor = False
            self._ask(index)
        if all(place.health.failed_starts >= STARTS and not place.starts for place in self.places):
            raise RolloutError(f"{self.title} 0 cannot start: {self.why}")

    def free(self, depth: float, avoiding: Collection[int] = ()) -> int | None:
        """Index of the least busy actor that is up, or None when each has ``depth`` calls under way; none of
        ``avoiding``, unless those are all that are ``alive``."""
        now = time.monotonic()
        able = [i for i, place in enumerate(self.places) if place.up and place.paused_until <= now]
        if avoiding and not set(avoiding).issuperset(self.alive):
            able = [i for i in able if i not in avoiding]
        index = min(able, key=lambda i: self.places[i].calls, default=None)
        return index if index is not None and self.places[index].calls < depth else None

    @property
    def busy(self) -> bool:
        """Whether a call is under way, whoever made it."""
        return any(place.calls for place in self.places)

    def stalled(self, seconds: float) -> list[int]:
        """Indices of the actors that have calls, but have begun and ended none for so long."""
        now = time.monotonic()
        return [i for i, p in enumerate(self.places) if p.calls and now - p.progress > seconds]

    def idle(self) -> list[int]:
        """Indices of the actors that are up and have no call under way."""
        self.refresh()
        return [index for index, place in enumerate(self.places) if place.up and not place.calls]

    def call(
        self, index: int, method: str, *arguments: Any, ended: Callable[[], None] = lambda: None
    ) -> list[ray.ObjectRef]:
        """Calls actor ``index``; the caller owns the two returned references, and is told by ``ended``."""
        place = self.places[index]
        if not place.calls:
            place.progress = time.monotonic()
        refs: list[ray.ObjectRef] = getattr(place.actor, method).options(num_returns=2).remote(*arguments)
        place.calls += 1

        def tell() -> None:
            place.calls -= 1
            place.progress = time.monotonic()
            ended()

        self.watch.add(refs[1], tell)
        return refs

    def everyone(self, method: str, timeout_s: float) -> None:
        """Calls ``method`` on all actors that are up, and waits for them. Who does not answer is killed."""
        self.refresh()
        refs = {self.call(index, method)[1]: index for index, place in enumerate(self.places) if place.up}
        if not refs:
            return
        ended, late = ray.wait(list(refs), num_returns=len(refs), timeout=timeout_s, fetch_local=False)
        for ref in ended:
            try:
                ray.get(ref)
            except ACTOR_LOST:
                self.lost(refs[ref])
            except ray.exceptions.RayTaskError as error:
                if kind_of(error) not in (Kind.DEVICE, Kind.MEMORY):
                    raise
                self.device_failed(refs[ref], one_line(error))
        for ref in late:
            self.restart(refs[ref])

    def lost(self, index: int) -> None:
        """A call at ``index`` failed because the actor died: no work for it until it is up again."""
        self.places[index].up = False

    def pause(self, index: int, seconds: float) -> None:
        """Gives an actor no work for so long: the others get what it could not do."""
        self.places[index].paused_until = time.monotonic() + seconds

    @property
    def pausing(self) -> bool:
        """Whether an actor pauses."""
        now = time.monotonic()
        return any(place.paused_until > now for place in self.places)

    def restart(self, index: int) -> bool:
        """Kills an actor that does not answer; Ray starts it again, and its calls fail as lost. False if
        there is none."""
        place = self.places[index]
        if place.health.quarantined or place.lacks_actor:
            return False
        ray.kill(place.actor, no_restart=False)
        place.progress = time.monotonic()
        place.ask_at = place.progress + ASK_EVERY_S  # not the process that is dying
        self.lost(index)
        return True

    def device_failed(self, index: int, why: str) -> None:
        """A device's errors stay until its process starts again, which is a strike."""
        self.restart(index)
        self.strike(index, why)

    def strike(self, index: int, why: str, of_process: bool = True) -> None:
        """Something went wrong at ``index`` that is the actor's own: too often in a row, and the place is
        put away for good, unless fewer than ``floor`` would be left. What goes wrong in the same process
        again says nothing new, if it is ``of_process``."""
        place = self.places[index]
        health, others = place.health, len(set(self.alive) - {index})
        if health.quarantined:
            return
        if health.strike(place.starts if of_process else None, others, self.floor):
            self.lost(index)
            ray.kill(place.actor)
            self.note(
                f"{self.title} {index} gets no more work: it failed {health.strikes} times in a row, last "
                f"with {why}; {others} go on"
            )

    def close(self) -> None:
        """Kills the actors."""
        for actor in self.actors:
            ray.kill(actor)

    def _ask(self, index: int) -> None:
        place = self.places[index]
        ref = place.actor.__ray_ready__.remote()
        place.asked = True
        self.watch.add(ref, lambda: self._answered(index, ref))

    def _answered(self, index: int, ref: ray.ObjectRef) -> None:
        place = self.places[index]
        place.asked = False
        try:
            ray.get(ref)
        except ray.exceptions.RayError as error:
            place.ask_at = time.monotonic() + ASK_EVERY_S
            again = isinstance(error, ACTOR_LOST) and not getattr(error, "actor_init_failed", False)
            if not again and not place.health.quarantined:  # or its environment could not be made
                self._could_not_start(index, error)
            return
        if not place.health.quarantined:
            place.up = True
            place.starts += 1
            place.health.came_up()

    def _could_not_start(self, index: int, error: Exception) -> None:
        place = self.places[index]
        wait_s = place.health.backoff_s()
        place.lacks_actor, place.ask_at = True, time.monotonic() + wait_s
        self.why = _last_line(error)
        if place.health.failed_starts == 1:
            self.note(f"{self.title} {index} could not start, and is started again: {self.why}")
        with suppress(ray.exceptions.RayError):
            ray.kill(place.actor)  # so that its name is free


def _last_line(error: Exception) -> str:
    """Of a constructor's error, which holds its traceback."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else one_line(error)
