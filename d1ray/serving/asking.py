"""From a request to the completions it asks for: prompts as tokens, settings within the server's limits."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from d1ray.config.sampling import SamplerConfig
from d1ray.models.config import DiffusionConfig
from d1ray.serving.config import ServeConfig
from d1ray.serving.generation import Generation
from d1ray.serving.protocol import ChatRequest, CompletionRequest, DiffusionOptions, Message, Sampled
from d1ray.serving.refusals import ApiError

SETTINGS = ("decoding", "schedule", "threshold", "factor", "entropy_bound", "position_temperature", "cache")


@dataclass(frozen=True)
class Asked:
    """The completions of one request: ``n`` for each prompt, the prompts one after the other.

    Attributes:
        prompt_tokens: of all prompts, each counted once.
        seed: the request's own, or drawn for it.
        usage: whether a stream ends with the usage.
    """

    generations: tuple[Generation, ...]
    prompt_tokens: int
    seed: int
    events: bool
    usage: bool


class Asking:
    """Reads requests for one model.

    Args:
        config: defaults and limits.
        tokenizer: the model's.
        model: its configuration: context and vocabulary.
    """

    def __init__(self, config: ServeConfig, tokenizer: PreTrainedTokenizerBase, model: DiffusionConfig):
        self.config, self.tokenizer, self.model = config, tokenizer, model

    def completion(self, request: CompletionRequest) -> Asked:
        """
        Raises:
            ApiError: another model, an impossible setting, or more than the limits allow.
        """
        given = request.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]  # type: ignore[assignment]
        self._check_choices(len(given) * (request.n or 1))
        prompts = [self._prompt_ids(prompt) for prompt in given]
        return self._asked(request, prompts)

    def chat(self, request: ChatRequest) -> Asked:
        """
        Raises:
            ApiError: as for ``completion``, or messages that the model's chat template does not take.
        """
        self._check_choices(request.n or 1)
        if request.max_completion_tokens is not None:
            request = request.model_copy(update={"max_tokens": request.max_completion_tokens})
        return self._asked(request, [self._chat_ids(request.messages)])

    def _asked(self, request: Sampled, prompts: Sequence[tuple[int, ...]]) -> Asked:
        if request.model != self.config.served_name:
            raise ApiError(
                404,
                f"the model {request.model!r} is not served here; ask for {self.config.served_name!r}",
                param="model",
                code="model_not_found",
            )
        if not prompts:
            raise ApiError(400, "prompt: it is empty; give at least one token", param="prompt")
        stop = self._stop(request.stop)
        events = bool(request.diffusion and request.diffusion.events)
        if events and not request.stream:
            raise ApiError(
                400, "diffusion.events: events come in a stream; set stream to true", param="diffusion.events"
            )
        if request.stream_options is not None and not request.stream:
            raise ApiError(400, "stream_options: set stream to true, or leave it out", param="stream_options")
        seed = secrets.randbits(32) if request.seed is None else request.seed
        generations = []
        for prompt in prompts:
            self._check_prompt(prompt)
            config, limit = self._sampling(request, len(prompt))
            for choice in range(request.n or 1):
                key, streamed = (seed, choice), bool(request.stream)
                generations.append(Generation(prompt, config, limit, key, stop, streamed, events))
        usage = events or bool(request.stream_options and request.stream_options.include_usage)
        return Asked(tuple(generations), sum(map(len, prompts)), seed, events, usage)

    def _sampling(self, request: Sampled, prompt: int) -> tuple[SamplerConfig, int]:
        """How a completion is denoised, and how many of its tokens count.

        Its length is ``max_tokens``, rounded up to whole blocks; what is left out is chosen as the server's
        defaults are, steps in proportion.
        """
        defaults, limits = self.config.sampling, self.config.limits
        most, options = request.max_tokens, request.diffusion or DiffusionOptions()
        room = self.model.max_sequence_length - prompt
        limit = min(defaults.gen_length, limits.max_tokens, room) if most is None else most
        if limit > limits.max_tokens:
            raise ApiError(
                400, f"max_tokens: {limit} is more than the {limits.max_tokens} allowed", param="max_tokens"
            )
        block = options.block_length or min(defaults.block_length, limit)
        if block > limits.max_tokens:
            raise ApiError(
                400,
                f"diffusion.block_length: {block} is more than the {limits.max_tokens} allowed",
                param="diffusion.block_length",
            )
        blocks = -(-limit // block)
        if most is None and blocks * block > room and room >= block:
            blocks = room // block
            limit = blocks * block
        if blocks * block > room:
            raise ApiError(
                400,
                f"the prompt has {prompt} tokens and the completion {blocks * block} (blocks of {block}),"
                f" more than the model's context of {self.model.max_sequence_length}; shorten one of them",
                param="max_tokens",
                code="context_length_exceeded",
            )
        share = round(block * defaults.steps / defaults.gen_length)
        steps = options.steps or blocks * min(block, max(1, share))
        if steps > max(limits.max_tokens, blocks * block):
            raise ApiError(
                400,
                f"diffusion.steps: {steps} is more than the {limits.max_tokens} allowed",
                param="diffusion.steps",
            )
        own = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
        for temperature in (request.temperature, options.temperature):
            own |= {} if temperature is None else {"temperature": temperature}
        shape = {"gen_length": blocks * block, "steps": steps, "block_length": block}
        values = {**defaults.model_dump(), **own, **shape}
        try:
            return SamplerConfig(**values), limit
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ApiError(400, f"diffusion: {reason}", param="diffusion", code="invalid_value") from error

    def _check_choices(self, choices: int) -> None:
        if choices > self.config.limits.choices:
            raise ApiError(
                400,
                f"n: {choices} completions are more than the {self.config.limits.choices} allowed",
                param="n",
            )

    def _check_prompt(self, ids: Sequence[int]) -> None:
        most = min(self.config.limits.prompt_tokens, self.model.max_sequence_length - 1)
        if not ids:
            raise ApiError(400, "prompt: it is empty; give at least one token", param="prompt")
        if len(ids) > most:
            raise ApiError(
                400,
                f"the prompt has {len(ids)} tokens, more than the {most} allowed; shorten it",
                param="prompt",
                code="context_length_exceeded",
            )

    def _stop(self, given: str | list[str] | None) -> tuple[str, ...]:
        stop = (given,) if isinstance(given, str) else tuple(given or ())
        if len(stop) > self.config.limits.stop:
            raise ApiError(
                400,
                f"stop: {len(stop)} strings are more than the {self.config.limits.stop} allowed",
                param="stop",
            )
        return tuple(string for string in stop if string)

    def _prompt_ids(self, prompt: Any) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(int(i) for i in self.tokenizer(prompt).input_ids)
        outside = next((i for i in prompt if i >= self.model.vocab_size), None)
        if outside is not None:
            raise ApiError(
                400,
                f"prompt: token {outside} is outside the vocabulary of {self.model.vocab_size}",
                param="prompt",
            )
        return tuple(prompt)

    def _chat_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The conversation in the model's chat template, up to where the assistant speaks on."""
        turns = [
            {"role": "system" if message.role == "developer" else message.role, "content": message.text}
            for message in messages
        ]
        prefill = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
        if not turns:
            raise ApiError(400, "messages: there is no message to answer", param="messages")
        try:
            ids = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # of the template's own choosing, where it dislikes the roles' order
            raise ApiError(
                400,
                "messages: the model's chat template does not take them, or it has none; try other roles, or "
                "/v1/completions",
                param="messages",
            ) from error
        ids = [*ids, *self.tokenizer(prefill, add_special_tokens=False).input_ids] if prefill else ids
        return tuple(int(i) for i in ids)
