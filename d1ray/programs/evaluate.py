"""`d1ray evaluate`: greedy completions of held-out examples, from the generator and scorer pools."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import ray
from transformers import PreTrainedTokenizerBase

from actors.buffer import RolloutBuffer
from actors.call import Call
from actors.failures import RolloutError
from actors.policy import PolicyRef
from actors.pools import Pools
from d1ray.config.errors import DataError
from d1ray.config.run import Config
from d1ray.evaluation.folder import EvaluationFolder
from d1ray.models.chat import encode_prompt
from d1ray.rl.rollout import Prompt, Request
from d1ray.run.summary import Verdict
from d1ray.tasks.task import Example

Tokenizer: TypeAlias = PreTrainedTokenizerBase


@dataclass(frozen=True)
class Evaluation:
    """Verdicts and completion texts in the order of the examples, without those that were ``dropped``."""

    verdicts: list[Verdict]
    texts: list[str]
    dropped: list[str]  # which, and why

    def whole(self) -> "Evaluation":
        """Itself. Raises ``RolloutError`` if examples were dropped: accuracies without them are others."""
        if self.dropped:
            raise RolloutError(f"{len(self.dropped)} batches were given up; {self.dropped[0]}")
        return self


def prompt_of(tokenizer: Tokenizer, example: Example, group_id: int, limit: int) -> Prompt:
    """An example as a prompt. Raises ``DataError`` if it has more than ``limit`` tokens."""
    try:
        return Prompt(
            group_id, tuple(encode_prompt(tokenizer, example.prompt, limit, example.prefill)), example
        )
    except ValueError as error:
        raise DataError(f"{example.task} example {example.key}: {error}") from error


def evaluate(
    pools: Pools,
    policy: PolicyRef,
    prompts: Sequence[Prompt],
    config: Config,
    interrupted: Callable[[], bool] = lambda: False,
    on_batch: Callable[[int], None] = lambda done: None,
    folder: EvaluationFolder | None = None,
    samples: int = 1,
) -> Evaluation:
    """Completes and scores every prompt ``samples`` times with ``config.evaluation.sampling``.

    ``on_batch`` is told how many completions are done after each batch. Batches that ``folder`` holds are not
    run again; others are kept there as they finish.

    Raises:
        Interrupted: ``interrupted()`` turned true.
    """
    requests = requests_of(prompts, samples, config)
    places = {(r.prompts[0].group_id, r.first): i for i, r in enumerate(requests)}

    def keep(call: Call) -> None:
        if folder:
            table = ray.get(call.table, timeout=config.cluster.deadline_s)
            folder.save(places[call.request.prompts[0].group_id, call.request.first], table)
            call.table = None

    buffer = RolloutBuffer(
        pools.generators, pools.scorers, len(requests), config.cluster.deadline_s, on_scored=keep
    )
    kept = {i: table for i in range(len(requests)) if folder and (table := folder.finished(i)) is not None}
    for i, request in enumerate(requests):
        if i not in kept:
            buffer.start(request, policy)
    verdicts: list[Verdict] = []
    texts: list[str] = []
    dropped: list[str] = []
    for i, request in enumerate(requests):
        if i in kept:
            m = {name: kept[i][name].to_pylist() for name in ("correct", "partial", "formatted", "text")}
            m["texts"] = m.pop("text")
        else:
            [call] = buffer.take(1, interrupted)
            buffer.release([call])
            if call.dropped:
                asked = f"{request.prompts[0].example.key} to {request.prompts[-1].example.key}"
                dropped.append(f"examples {asked}: {call.dropped}")
                continue
            m = call.metadata
        tags = [prompt.example.tags for prompt in request.prompts for _ in range(request.rollouts)]
        verdicts += list(zip(m["correct"], m["partial"], m["formatted"], tags, strict=True))
        texts += m["texts"]
        on_batch(len(verdicts))
    return Evaluation(verdicts, texts, dropped)


def requests_of(prompts: Sequence[Prompt], samples: int, config: Config) -> list[Request]:
    """Requests of at most ``evaluation.batch_size`` completions; those of an example are adjacent."""
    size, sampling, seed = config.evaluation.batch_size, config.evaluation.sampling, config.seed
    if samples <= size:
        each = size // samples
        return [
            Request(tuple(prompts[i : i + each]), samples, sampling, seed)
            for i in range(0, len(prompts), each)
        ]
    return [
        Request((prompt,), min(size, samples - first), sampling, seed, first=first)
        for prompt in prompts
        for first in range(0, samples, size)
    ]


def held_out_prompts(tokenizer: Tokenizer, examples: Sequence[Example], limit: int) -> list[Prompt]:
    """Prompts of evaluation examples; negative group ids keep their noise apart from training's."""
    return [prompt_of(tokenizer, example, -(i + 1), limit) for i, example in enumerate(examples)]
