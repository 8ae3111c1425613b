"""`d1ray harness`: lm-evaluation-harness's tasks on this sampler (extra ``harness``).

Generation runs on the sampler, in batches; likelihoods of given texts are Monte-Carlo lower bounds
(``d1ray.diffusion.sequence_bound``), comparable among a model's answers to one question, not with the
likelihoods of autoregressive models. One process, one device.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table
from tqdm import tqdm

from d1ray.config.errors import ConfigError
from d1ray.config.evaluation import EvaluationConfig, EvaluationSamplerConfig
from d1ray.diffusion.sampler import sample
from d1ray.diffusion.sequence_bound import sequence_bound
from d1ray.models.architectures import read_config
from d1ray.models.chat import decode_completion
from d1ray.models.load import load_model
from d1ray.models.tokenizer import load_tokenizer
from d1ray.run.atomic import write_atomically
from d1ray.tasks.answers import until_end

Pair = tuple[tuple[str, str], list[int], list[int]]  # texts and token ids of a context and a continuation


class HarnessModel(TemplateLM):
    """A masked diffusion model as the harness sees it.

    Args:
        folder: a model folder or hub id.
        evaluation: how completions are sampled, and how many at once.
        seed: keys all noise, with the place of a request among its kind.
        likelihood_samples: forward passes for each likelihood; LLaDA uses 128.
        dtype: of the weights; None for the one they are stored in.

    Raises:
        ConfigError: the model's context leaves no room for a prompt.
    """

    def __init__(
        self,
        folder: Path | str,
        evaluation: EvaluationConfig,
        seed: int = 0,
        likelihood_samples: int = 128,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        context, length = read_config(folder).max_sequence_length, evaluation.sampling.gen_length
        if length >= context:
            raise ConfigError(
                f"completions of {length} tokens leave no room for a prompt in the context of {folder}, "
                f"{context}; give a shorter --length"
            )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_model(folder, dtype, device=self._device)
        self.tokenizer = load_tokenizer(folder)
        self.evaluation, self.seed = evaluation, seed
        self.likelihood_samples = likelihood_samples

    @property
    def eot_token_id(self) -> int:
        return self.model.config.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        bos = self.tokenizer.bos_token
        templated = bool(bos) and string.startswith(str(bos))
        special = not templated if add_special_tokens is None else add_special_tokens
        ids: list[int] = self.tokenizer(string, add_special_tokens=special).input_ids
        return ids

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Completions, each up to the first of its stop strings.

        Lengths and decoding are those of ``evaluation.sampling``, whatever ``max_gen_toks`` says: a diffusion
        model's completion has the length it starts with. Where a task asks for samples, it sets the
        temperature.
        """
        size, texts = self.evaluation.batch_size, [""] * len(requests)
        by_temperature: dict[float, list[int]] = {}
        for i, request in enumerate(requests):
            by_temperature.setdefault(self._temperature(request.args[1]), []).append(i)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Generating") as progress:
            for temperature, places in by_temperature.items():
                sampling = self.evaluation.sampling.model_copy(update={"temperature": temperature})
                places.sort(key=lambda i: len(requests[i].args[0]))  # little padding
                for first in range(0, len(places), size):
                    part = places[first : first + size]
                    self._complete(requests, part, sampling, texts)
                    progress.update(len(part))
        return texts

    def _temperature(self, options: dict[str, Any]) -> float:
        if options.get("do_sample") and options.get("temperature") is not None:
            return float(options["temperature"])
        return self.evaluation.sampling.temperature

    def _complete(
        self,
        requests: list[Instance],
        part: list[int],
        sampling: EvaluationSamplerConfig,
        texts: list[str],
    ) -> None:
        room = self.model.config.max_sequence_length - sampling.gen_length
        # Of a context that is too long the end counts; one that is empty begins a text.
        prompts = [self.tok_encode(requests[i].args[0])[-room:] or [self.prefix_token_id] for i in part]
        samples = sample(self.model, prompts, sampling, [(self.seed, i) for i in part])
        for i, ids in zip(part, samples.ids.tolist(), strict=True):
            text = until_end(decode_completion(self.tokenizer, ids, self.eot_token_id))
            until = requests[i].args[1].get("until") or []
            for stop in [until] if isinstance(until, str) else until:
                text = text.partition(stop)[0] if stop else text
            texts[i] = text

    def _loglikelihood_tokens(
        self, requests: list[Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Bounds in nats; the masks of a pair are keyed by its place among the requests."""
        context = self.model.config.max_sequence_length
        answers = []
        for place, (_, before, continuation) in enumerate(
            tqdm(requests, disable=disable_tqdm, desc="Likelihoods")
        ):
            after = continuation[: context - 1]
            prompt = before[-(context - len(after)) :]
            bound = sequence_bound(
                self.model,
                prompt,
                after,
                self.likelihood_samples,
                self.seed,
                place,
                rows=self.evaluation.batch_size,
            )
            answers.append((bound, False))
        return answers

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Bounds in nats and, for texts that are no choices of a question, if greedy decoding gives them.

        That takes a forward pass for each token; the ``acc`` of last-word tasks such as LAMBADA needs it.
        """
        bounds = [bound for bound, _ in super().loglikelihood(requests, disable_tqdm)]
        texts_of = Counter((request.task_name, request.doc_id) for request in requests)
        return [
            (bound, texts_of[request.task_name, request.doc_id] == 1 and self._gives(*request.args))
            for request, bound in zip(requests, bounds, strict=True)
        ]

    def _gives(self, context: str, text: str) -> bool:
        before, continuation = self._encode_pair(context, text) if context else ([], self.tok_encode(text))
        return self._is_greedy(before or [self.prefix_token_id], continuation)

    def _is_greedy(self, prompt: list[int], continuation: list[int]) -> bool:
        length = len(continuation)
        prompt = prompt[-(self.model.config.max_sequence_length - length) :]
        sampling = EvaluationSamplerConfig(gen_length=length, steps=length, block_length=length)
        decoded: list[int] = sample(self.model, [prompt], sampling, [self.seed]).ids[0].tolist()
        return decoded == continuation

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Bounds of whole texts, in pieces of the model's context, each after the prefix token alone."""
        room = self.model.config.max_sequence_length - 1
        pieces: list[Pair] = []
        owners = []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for first in range(0, len(ids), room):
                pieces.append((("", ""), [self.prefix_token_id], ids[first : first + room]))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (bound, _) in zip(owners, self._loglikelihood_tokens(pieces, disable_tqdm), strict=True):
            totals[owner] += bound
        return totals


def tasks_of(tasks: Sequence[str], include_path: Path | None = None) -> TaskManager:
    """The harness's tasks, with those of the folder ``include_path``.

    Raises:
        ConfigError: one of ``tasks`` is not among them.
    """
    manager = TaskManager(include_path=str(include_path) if include_path else None)
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise ConfigError(
            f"the harness has no task {', '.join(unknown)}; `lm-eval ls tasks` lists its own, and "
            f"--include-path adds others"
        )
    return manager


def run_tasks(
    load: Callable[[], HarnessModel],
    tasks: Sequence[str],
    include_path: Path | None,
    fewshot: int | None,
    limit: int | None,
    chat: bool,
    output: Path | None,
) -> None:
    """Prints the harness's table of ``tasks``, and writes its results to ``output``.

    The model is loaded when the tasks are known to be there. Raises ``ConfigError`` where they are not.
    """
    manager = tasks_of(tasks, include_path)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    results = run_harness(load(), tasks, manager, fewshot, limit, chat)
    print(make_table(results))
    if output is not None:
        results.pop("samples", None)
        write_atomically(output, json.dumps(results, indent=2, default=str) + "\n")


def run_harness(
    model: HarnessModel,
    tasks: Sequence[str],
    manager: TaskManager,
    fewshot: int | None = None,
    limit: int | None = None,
    chat: bool = False,
) -> dict[str, Any]:
    """The harness's results of ``tasks``, as ``lm_eval.simple_evaluate`` gives them."""
    results: dict[str, Any] = lm_eval.simple_evaluate(
        model=model,
        tasks=list(tasks),
        num_fewshot=fewshot,
        limit=limit,
        apply_chat_template=chat,
        task_manager=manager,
        random_seed=model.seed,
        numpy_random_seed=model.seed,
        torch_random_seed=model.seed,
        fewshot_random_seed=model.seed,
    )
    return results
