"""What a backend is asked for, and what it answers: the small interface between the API and the engine, which
Ray Serve may have put in another process."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from d1ray.config.sampling import SamplerConfig


@dataclass(frozen=True)
class Generation:
    """One completion to make: a pure function of this and of the weights.

    Attributes:
        prompt: token ids.
        config: how it is denoised; ``gen_length`` masks.
        limit: tokens that count, at most ``config.gen_length``.
        seed: (request's seed, choice).
        stop: strings that end the text, and are no part of it.
        text: whether progress is wanted whenever the text has grown.
        events: whether progress is wanted at every denoising step.
    """

    prompt: tuple[int, ...]
    config: SamplerConfig
    limit: int
    seed: tuple[int, int]
    stop: tuple[str, ...] = ()
    text: bool = False
    events: bool = False


@dataclass(frozen=True)
class Step:
    """What a denoising step committed: places in the completion, their texts and probabilities."""

    number: int
    block: int
    positions: list[int]
    tokens: list[str]
    confidences: list[float]


@dataclass(frozen=True)
class Progress:
    """How far a completion is.

    The first of a generation says that it has been accepted, and the last has a ``finish``. What follows on
    one another does not change when the generation is made again, but for ``seconds``.

    Attributes:
        version: of the weights.
        exact: whether all this holds to the last bit, whatever else is denoised meanwhile.
        text: what has become final since the last progress.
        step: the denoising step, where events are wanted.
        finish: "stop" or "length" at the end; None before.
        tokens: of the text so far, by the model's tokenizer.
        forwards: forward passes so far.
        seconds: since the request came in.
    """

    version: str
    exact: bool = True
    text: str = ""
    step: Step | None = None
    finish: str | None = None
    tokens: int = 0
    forwards: int = 0
    seconds: float = 0.0


class Refused(Exception):
    """The replica has as much to do as it may take on; in ``retry_after`` seconds that may be over."""

    def __init__(self, retry_after: int):
        super().__init__(retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"the server is busy; try again in {self.retry_after} s"


class Unavailable(Exception):
    """No replica could answer, for a reason that passes: it died, or is being replaced."""


class Backend(Protocol):
    """Where completions are made."""

    def generate(self, generation: Generation) -> AsyncGenerator[Progress, None]:
        """Progress from acceptance to finish. Leaving the iteration early gives the completion up.

        Raises (while iterating):
            Refused: too much to do.
            Unavailable: the replica died and no other could go on.
        """
        ...

    async def version(self) -> str:
        """Of the weights that the next generation gets.

        Raises:
            Unavailable: no replica answers.
        """
        ...
