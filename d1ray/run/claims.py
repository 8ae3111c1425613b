"""Claims to a place: small numbered files, ``.lease/00007.json``, that one process makes and then renews.

They are never removed, so that nothing depends on how fresh a listing is: it only tells where to begin
looking. ``d1ray.run.lease`` says what they mean, and what holds on which storage.
"""

import json
import os
import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from d1ray.config.errors import RunFailed
from d1ray.run.checkpoint import PAUSE_S, TRIES, Place, Unreachable, listed

SETTLE_S = 2.0  # in which a put to object storage arrives
NUMBER = re.compile(r"(\d{5,})\.json")
Record: TypeAlias = dict[str, Any]


class LeaseLost(RunFailed):
    """Somebody else owns the place by now: nothing may be written there any more."""


@dataclass(frozen=True)
class Claim:
    """The right to write in a place. It travels to whoever writes there on behalf of its owner."""

    place: Place
    number: int
    token: str  # its owner's

    @property
    def file(self) -> Place:
        return self.place / ".lease" / f"{self.number:05d}.json"

    def check(self) -> None:
        """Raises ``LeaseLost`` unless the claim is the last one, and in force."""
        own, later = self.read(), self.next().read()
        if later is None and own and own.get("token") == self.token and not own.get("released"):
            return
        taken = f"it was taken over by {who(later)}" if later else "its claim is gone, or given back"
        raise LeaseLost(f"{self.place} belongs to this process no longer: {taken}; nothing more is written")

    def next(self, token: str = "") -> "Claim":
        """The claim with the next number."""
        return Claim(self.place, self.number + 1, token or self.token)

    def read(self) -> Record | None:
        """What the file says; None if there is none, {} if it is no JSON. Raises ``Unreachable``."""
        file = self.file
        for left in reversed(range(TRIES)):
            try:
                if isinstance(file, Path):
                    return dict(json.loads(file.read_bytes()))
                file.fs.invalidate_cache()
                return dict(json.loads(file.fs.cat_file(file.path)))
            except (FileNotFoundError, NotADirectoryError):
                return None
            except ValueError:  # amid its writing
                if not left:
                    return {}
            except Exception as error:
                if not left:
                    raise Unreachable(f"{file} cannot be read: {type(error).__name__}: {error}") from error
            time.sleep(PAUSE_S)
        raise AssertionError

    def make(self, record: Record, clock: Any = time) -> bool:
        """Whether the number was free, and is this claim's now. Raises ``Unreachable``."""
        file, data, error = self.file, json.dumps(record).encode(), None
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file, Path):
            _make_local(file, data)
        else:
            try:
                file.fs.pipe_file(file.path, data, mode="create")
            except Exception as refused:  # of each kind of storage; also that another one was faster
                error = refused
            clock.sleep(SETTLE_S)
        found = self.read()
        if found is None:
            raise Unreachable(f"{file} cannot be written: {error}") from error
        return bool(found.get("token") == self.token)

    def write(self, record: Record) -> None:
        """Replaces what the file says."""
        file, data = self.file, json.dumps(record).encode()
        if isinstance(file, Path):
            _draft(file, data).replace(file)
        else:
            file.fs.pipe_file(file.path, data)


def newest(place: Place) -> tuple[Claim, Record | None]:
    """The claim with the highest number, and what it says; number 0 and None if there is none."""
    try:
        names = [NUMBER.fullmatch(file.name) for file in listed(place / ".lease")]
    except (FileNotFoundError, NotADirectoryError):
        names = []
    number = max((int(name[1]) for name in names if name), default=0)
    claim = Claim(place, number, "")
    record = claim.read() if number else None
    while (later := claim.next().read()) is not None:
        claim, record = claim.next(), later
    return Claim(place, claim.number, (record or {}).get("token", "")), record


def in_force(places: Iterable[Place]) -> tuple[Claim, ...]:
    """The last claims to places, for who writes on behalf of their owner; none to a place without one."""
    found = []
    for place in places:
        _refresh(place)
        found.append(newest(place))
    return tuple(claim for claim, said in found if said and not said.get("released"))


def check(claims: Iterable[Claim]) -> None:
    """Raises ``LeaseLost`` unless all are in force."""
    for claim in claims:
        claim.check()


def who(record: Record) -> str:
    """The process that a claim is of."""
    return f"pid {record.get('pid', '?')} on {record.get('host', '?')}"


def _refresh(place: Place) -> None:
    """Has NFS show which claims there are now: who changes a folder is told of what others changed there."""
    folder = place / ".lease"
    if isinstance(folder, Path) and folder.is_dir():
        _draft(folder / "look", b"").unlink()


def _draft(file: Path, data: bytes) -> Path:
    draft = file.with_name(f".{uuid.uuid4().hex}.tmp")  # processes of several machines may have the same id
    draft.write_bytes(data)
    return draft


def _make_local(file: Path, data: bytes) -> None:
    draft = _draft(file, data)
    try:
        os.link(draft, file)  # NFS may say that it exists though it was this call that made it
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        try:
            with file.open("xb") as stream:
                stream.write(data)
        except FileExistsError:
            pass
    finally:
        draft.unlink()
