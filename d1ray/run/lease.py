"""One owner of a run folder: a lease with a fencing number, on local disks, NFS and object storage.

A claim (``d1ray.run.claims``) is a numbered file: whoever makes it first has the number, and its owner alone
renews it. The highest number counts. A process with a lower one has lost the place, and finds that out before
it writes (``Claim.check``), wherever it runs.

A claim gives way to the next number once it is released; once its process is gone, as seen on the same
machine; or once it was not renewed for ``LEASE_S``: by the same clock on the same machine, and on another one
as watched for so long, whatever the clocks say.

What holds where:

- Local disks and NFS: a number is made by ``link``, which one process succeeds with; without links by
  ``O_EXCL``. A successor marks the claim before its own: NFS may show a new file late, never an old content.
- Object storage: by a conditional put, where fsspec has it (``mode="create"``: S3, GCS, Azure). Where a store
  passes over the condition, the last of several puts counts, as each sees ``SETTLE_S`` later: that one alone
  goes on if puts take less than that, and otherwise the others find out when they next write.
- Everywhere a process may be stopped between its check and its write. What counts comes right after a check
  (a manifest, a rename), and whoever takes over from a silent owner waits ``SETTLE_S`` before it writes.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from upath import UPath

from d1ray.config.errors import RunFailed, UserError
from d1ray.config.run import Config
from d1ray.run.checkpoint import Place
from d1ray.run.claims import SETTLE_S, Claim, LeaseLost, Record, newest, who
from d1ray.run.process import alive, machine, this_process

LEASE_S, RENEW_S, POLL_S = 60.0, 15.0, 2.0

_owned: dict[tuple[int, str], "Lease"] = {}  # by process id: a fork owns nothing
_opening = threading.Lock()


class Held(UserError):
    """Somebody else owns the place."""


class Lease:
    """A claim in force, from ``take`` to ``release``."""

    def __init__(self, claim: Claim, record: Record, clock: Any = time):
        self.claim, self._record, self._clock = claim, record, clock
        self._lock, self._ended, self.users = threading.Lock(), threading.Event(), 1

    def check(self) -> None:
        """Raises ``LeaseLost`` unless the place is still this owner's."""
        self.claim.check()

    def advance(self) -> None:
        """A higher number for the same owner: who still works under the one before may write no more."""
        with self._lock:
            self.check()
            claim = self.claim.next()
            if not claim.make(self._record | {"renewed": self._clock.time()}, self._clock):
                raise LeaseLost(f"{claim.place} was taken over meanwhile; nothing more is written")
            self.claim.write(self._record | {"released": True})
            self.claim = claim

    def renew(self) -> None:
        """Shows others that the owner lives. Raises ``LeaseLost``."""
        with self._lock:
            self.check()
            self._record["renewed"] = self._clock.time()
            self.claim.write(self._record)

    def release(self) -> None:
        """Gives the place back when all users in this process have, if it is still this owner's."""
        with _opening:
            self.users -= 1
            if self.users:
                return
            for key in [key for key, lease in _owned.items() if lease is self]:
                del _owned[key]
        self._ended.set()
        with self._lock:
            try:
                self.check()
                self.claim.write(self._record | {"released": True})
            except (RunFailed, OSError):
                pass  # it is another's, or expires by itself

    def keep_renewing(self) -> None:
        """Until it is released or lost, in a thread. Storage that does not answer is tried again."""
        while not self._ended.wait(RENEW_S):
            try:
                self.renew()
            except LeaseLost:
                return  # whoever writes next is told
            except Exception:
                continue


def own(place: Place, note: Callable[[str], None] = lambda text: None) -> Lease:
    """Makes this process the owner of a place until it has released it as often as it called this.

    Raises:
        Held: another process owns it; nothing was changed.
    """
    key = os.getpid(), str(place.resolve() if isinstance(place, Path) else place)
    with _opening:
        lease = _owned.get(key)
        if lease is not None:
            lease.check()
            lease.users += 1
            return lease
        lease = _owned[key] = take(place, note)
    threading.Thread(target=lease.keep_renewing, name="lease", daemon=True).start()
    return lease


def take(place: Place, note: Callable[[str], None] = lambda text: None, clock: Any = time) -> Lease:
    """A lease of a place, which nothing renews.

    Args:
        note: is told why it takes long.
        clock: has ``time``, ``monotonic`` and ``sleep``.

    Raises:
        Held: it is somebody's; nothing was changed.
    """
    record = this_process() | {"token": uuid.uuid4().hex, "claimed": clock.time()}
    while True:
        before, said = newest(place)
        silent = said is not None and _await_end(before, said, note, clock)
        claim = before.next(record["token"])
        record["renewed"] = clock.time()
        if claim.make(record, clock):
            if said is not None:
                before.write(said | {"released": True})
            if silent:
                clock.sleep(SETTLE_S)
            claim.check()
            return Lease(claim, record, clock)


def refuse_if_held(place: Place) -> None:
    """Raises ``Held`` if another process of this machine owns the place: what is known without waiting."""
    claim, said = newest(place)
    if said is not None and said.get("machine") == machine() and said.get("pid") != os.getpid():
        _await_end(claim, said, lambda text: None, time)


def places_of(config: Config) -> list[Place]:
    """Where the run of ``config`` writes: its folder first, then its checkpoints if they are elsewhere."""
    elsewhere = [UPath(config.checkpoint_path)] if config.checkpoint_path else []
    return [config.run_dir, *elsewhere] if config.run_dir else []


def _await_end(claim: Claim, said: Record, note: Callable[[str], None], clock: Any) -> bool:
    """Returns once a claim gives way: True if its owner fell silent. Raises ``Held``."""
    if said.get("released"):
        return False
    if said.get("machine") == machine():
        if not alive(said):
            return False
        if clock.time() - said["renewed"] < LEASE_S:
            raise Held(_held(claim.place, said, clock))
        return True
    note(f"{claim.place} was in use by {who(said)}; it is free if that shows no life for {LEASE_S:g} s")
    began = clock.monotonic()
    while clock.monotonic() - began < LEASE_S:
        clock.sleep(POLL_S)
        last, now = newest(claim.place)
        if (last, now) != (claim, said):
            if now and not now.get("released"):
                raise Held(_held(claim.place, now, clock))
            return False
    return True


def _held(place: Place, said: Record, clock: Any) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(said.get("claimed", 0)))
    ago = max(0.0, clock.time() - said.get("renewed", 0))
    return (
        f"{place} is in use by {who(said)}, which began {since} and showed itself {ago:.0f} s ago: wait for "
        f"it or end it, or choose another folder with run_dir=DIR"
    )
