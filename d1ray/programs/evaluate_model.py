"""`d1ray evaluate`: any model folder, checkpoint or run folder on a task's held-out examples."""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from actors.failures import RolloutError
from actors.placement import check_resources, connected, shared_places
from actors.policy import policy_of_folder
from actors.pools import Pools
from d1ray.config.errors import ConfigError, DataError
from d1ray.config.run import Config
from d1ray.config.settings import local_or_hub
from d1ray.diffusion.decoding import is_random
from d1ray.evaluation.config import with_length
from d1ray.evaluation.folder import EvaluationFolder, digest_of_model, digest_of_prompts
from d1ray.evaluation.table import Cell, as_rows, cell_of, markdown
from d1ray.models.architectures import read_config
from d1ray.models.load import check_weights
from d1ray.models.tokenizer import load_tokenizer
from d1ray.programs.evaluate import Tokenizer, evaluate, held_out_prompts
from d1ray.run import summary
from d1ray.run.atomic import write_atomically
from d1ray.run.data import examples_of, stays
from d1ray.run.interrupt import Interrupt
from d1ray.tasks.source import examples_to_evaluate
from d1ray.tasks.task import Example


@dataclass(frozen=True)
class Asked:
    """What is evaluated, beside the settings.

    Attributes:
        data: a file, or a folder or hub id with a test split of its own; None: the task's test split.
        count: how many examples at most.
        lengths: generation lengths to evaluate in turn (``with_length``); none for the configured sampling.
        output: a folder that keeps finished batches, a folder a length; the same call goes on from there.
        samples: completions of each example.
    """

    data: Path | None = None
    count: int | None = None
    lengths: Sequence[int] = ()
    output: Path | None = None
    samples: int = 1


def evaluate_model(
    config: Config, folder: Path, asked: Asked
) -> tuple[list[summary.StageResult], list[Cell]]:
    """Evaluates the model in ``folder``, which may be a hub id, on what is asked.

    Returns:
        A result and a cell of the table a length.

    Raises:
        UserError: the model or the data cannot be read; raised before any actor starts.
        Interrupted: a signal came; finished batches are in ``output``.
    """
    lengths, samples = asked.lengths, asked.samples
    if samples > 1 and not is_random(config.evaluation.sampling):
        raise ConfigError(
            f"{samples} samples at temperature 0 are the same one; "
            f"set a temperature too, e.g. evaluation.sampling.temperature=0.9"
        )
    check_weights(folder)
    tokenizer = load_tokenizer(folder)
    examples, dropped = examples_to_complete(config, tokenizer, asked.data, asked.count)
    if dropped:
        print(f"{dropped:,} examples are left out: their prompts are too long", file=sys.stderr)
    prompts = held_out_prompts(tokenizer, examples, config.data.max_prompt_length)
    check_lengths(config, lengths, max(len(prompt.ids) for prompt in prompts), folder)
    identity = {"model": str(folder), "weights": digest_of_model(folder), "seed": config.seed}
    with ExitStack() as stack:
        stack.enter_context(connected(config.cluster))
        check_resources(config, learner=False)
        interrupt = stack.enter_context(Interrupt())
        kept = asked.output or Path(stack.enter_context(TemporaryDirectory(prefix="d1ray-evaluation-")))
        places = stack.enter_context(shared_places(config.cluster))
        pools = stack.enter_context(closing(Pools(config, folder, places, _note)))
        results, cells = [], []
        for length in lengths or [config.evaluation.sampling.gen_length]:
            at_length = with_length(config, length) if lengths else config
            finished = EvaluationFolder(
                kept / f"{Path(config.task.name).stem}-{length}",
                identity
                | {
                    "task": config.task.model_dump(mode="json"),
                    "sampling": at_length.evaluation.sampling.model_dump(mode="json"),
                    "batch_size": config.evaluation.batch_size,
                    "samples": samples,
                    "prompts": digest_of_prompts(prompts),
                },
            )
            done = evaluate(
                pools,
                policy_of_folder(folder),
                prompts,
                at_length,
                interrupt,
                folder=finished,
                samples=samples,
            ).whole()
            results.append(summary.summarise(folder.name, config.task.name, done.verdicts))
            tables = finished.tables()
            if sum(table.num_rows for table in tables) != len(prompts) * samples:
                raise RolloutError(f"{finished.path} does not hold every batch; remove it and evaluate again")
            vote = config.task.vote
            cells.append(cell_of(folder.name, config.task.name, length, tables, samples, dropped, vote))
    return results, cells


def evaluate_tasks(configs: Sequence[Config], folder: Path, asked: Asked, as_json: bool = False) -> None:
    """Evaluates a model on several tasks and prints a table, or JSON; ``output`` gets both as files."""
    results, cells = [], []
    for config in configs:
        done = evaluate_model(config, folder, asked)
        results += done[0]
        cells += done[1]
    output, many = asked.output, asked.samples > 1
    if output is not None:
        write_atomically(output / "results.json", json.dumps(as_rows(cells), indent=2) + "\n")
        write_atomically(output / "table.md", markdown(cells))
    if as_json:
        rows = as_rows(cells) if output or many else summary.as_rows(results)
        print(json.dumps(rows[0] if len(rows) == 1 else rows))
    elif output is not None or many:
        print(markdown(cells), end="")
    else:
        Console().print(*(summary.table([result]) for result in results))


def examples_to_complete(
    config: Config, tokenizer: Tokenizer, data: Path | None, count: int | None
) -> tuple[list[Example], int]:
    """The examples to evaluate on, and how many were left out because their prompts are too long.

    Raises:
        DataError: there are none, or the data cannot be read.
    """
    settings = config.data
    if data is None:
        opened = examples_of(settings, config.task, config.seed, tokenizer)
        return opened.examples("test", count or config.evaluation.examples), opened.dropped.get("test", 0)
    examples = examples_to_evaluate(config.task, local_or_hub(data), settings.subset, settings.columns)
    kept = [example for example in examples if stays(settings, tokenizer, example)]
    if not kept:
        raise DataError(f"{data} holds no rows that fit data.max_prompt_length={settings.max_prompt_length}")
    return kept[:count], len(examples) - len(kept)


def check_lengths(config: Config, lengths: Sequence[int], longest_prompt: int, folder: Path) -> None:
    """Raises ConfigError if a length has no valid schedule, or does not fit the model with its prompt."""
    context = read_config(folder).max_sequence_length
    for length in lengths or [config.evaluation.sampling.gen_length]:
        if lengths:
            with_length(config, length)
        if longest_prompt + length > context:
            raise ConfigError(
                f"a prompt of {longest_prompt} tokens and a completion of {length} are more than the context "
                f"of {folder}, {context}; give a shorter --length"
            )


def _note(text: str) -> None:
    print(text, file=sys.stderr)
