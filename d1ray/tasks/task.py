"""What a task is: it turns rows or random draws into examples, and completions into scores."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from d1ray.config.settings import Named
from d1ray.config.sft import DemonstrationStyle as DemonstrationStyle  # tasks ask for it here
from d1ray.tasks.answers import until_end

if TYPE_CHECKING:
    import numpy as np

Split = Literal["train", "validation", "test"]
Failure = Literal["", "timeout", "crash"]


@dataclass(frozen=True)
class Example:
    """One problem: what the model is asked, and the fields its completion is checked against.

    ``prompt`` is the user's turn, ``prefill`` what the assistant's turn begins with already. ``key``
    identifies the problem (two examples with the same key are the same problem) and keeps the splits
    disjoint. ``fields`` holds JSON values only. ``tags`` name subsets that the evaluation reports
    separately, e.g. ``"new grid"``.
    """

    task: str
    key: str
    prompt: str
    fields: Mapping[str, Any]
    tags: tuple[str, ...] = ()
    prefill: str = ""


@dataclass(frozen=True)
class Score:
    """The verdict on one completion.

    ``components`` are named rewards; the reward is their sum. ``correct`` is the task's strict
    criterion, ``partial`` its graded accuracy in [0, 1] (Sudoku: d1's cell accuracy; tasks without
    one repeat ``correct``), ``formatted`` whether an answer was found where one was asked for.
    ``parsed`` is the answer that was read, as text; None if none could be read. ``failure`` says that the
    check itself did not end (``d1ray.tasks.checker``): such a completion scores nothing.
    """

    components: Mapping[str, float]
    correct: bool
    partial: float
    formatted: bool
    parsed: str | None = None
    failure: Failure = ""

    @property
    def reward(self) -> float:
        return float(sum(self.components.values()))


def split_by_hash(key: str, parts: int) -> Split:
    """The split of the problem ``key``, where validation and test are one of ``parts`` parts each."""
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") % parts
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


class Task(Named):
    """A task and its options. Subclasses are registered in ``d1ray.config.kinds``; options are fields.

    A subclass is one short file. Its ``judge`` answers any completion, however malformed, with a ``Score``.
    """

    placeholders: ClassVar[tuple[str, ...]] = ()  # names that every template holds, e.g. "puzzle"
    rewards: ClassVar[tuple[str, ...]] = ()  # names of the components that ``judge`` gives
    hub: ClassVar[tuple[str, str | None] | None] = None  # data set on the hub, and which of its subsets
    confined: ClassVar[bool] = True  # False: ``judge`` needs the network, files or programs (tasks.confine)

    template: str = Field(description="the user's turn, with {placeholders}")
    prefill: str = Field("", description="what the assistant's turn begins with, e.g. <reasoning>")
    weights: Mapping[str, float] = Field({}, description="factor of each reward component; 1 where not given")

    @field_validator("template")
    @classmethod
    def _holds_placeholders(cls, template: str) -> str:
        missing = [f"{{{name}}}" for name in cls.placeholders if f"{{{name}}}" not in template]
        if missing:
            raise ValueError(f"a template for this task holds {' and '.join(missing)}; found {template!r}")
        return template

    @field_validator("weights")
    @classmethod
    def _known_rewards(cls, weights: Mapping[str, float]) -> Mapping[str, float]:
        unknown = sorted(weights.keys() - set(cls.rewards))
        if unknown:
            raise ValueError(
                f"no reward component {', '.join(unknown)}; this task has {', '.join(cls.rewards)}"
            )
        if not all(map(math.isfinite, weights.values())):
            raise ValueError(f"weights are finite numbers, found {dict(weights)}")
        return weights

    def prompt(self, **values: str) -> str:
        """The template with ``{name}`` replaced by each value; all other braces stay as they are."""
        prompt = self.template
        for name, value in values.items():
            prompt = prompt.replace(f"{{{name}}}", value)
        return prompt

    def draw(self, split: Split, rng: "np.random.Generator") -> Example:
        """Draws one random example of ``split``. The splits are disjoint by ``Example.key``."""
        raise NotImplementedError(f"task {self.name!r} has no generator: give data.path=FILE")

    def example(self, row: Mapping[str, Any]) -> Example:
        """Reads one row of a data file.

        Raises ``ValueError`` saying what is wrong with the row, or ``KeyError`` for a missing column.
        """
        raise NotImplementedError

    def split_of(self, key: str) -> Split:
        """The split of the problem ``key``: 80 % train, 10 % validation and 10 % test, by hash."""
        return split_by_hash(key, 10)

    def demonstration(self, example: Example, style: DemonstrationStyle, rng: "np.random.Generator") -> str:
        """A completion to train on: a right, well formatted one, or a corrupted one."""
        raise NotImplementedError

    def score(self, example: Example, completion: str) -> Score:
        """Judges ``completion``, the text that follows ``example.prefill``, with the task's weights."""
        score = self.judge(example, example.prefill + until_end(completion))
        weighted = {name: self.weights.get(name, 1.0) * value for name, value in score.components.items()}
        return replace(score, components=weighted)

    def vote(self, parsed: str) -> str:
        """What ``Score.parsed`` counts as in a majority vote: one text for answers that mean the same."""
        return parsed

    def prepare(self) -> None:
        """Called once in a process before it judges: imports and caches, whose time is no completion's."""

    def judge(self, example: Example, text: str) -> Score:
        """Judges ``text``, the assistant's whole turn. Garbage scores 0; never raises."""
        raise NotImplementedError
