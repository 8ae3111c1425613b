"""The completions that the page holds: whole groups, evenly over the run, in columns that compress well."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from d1ray.config.errors import UserError
from d1ray.models.architectures import read_config
from d1ray.models.tokenizer import load_tokenizer
from d1ray.report.runs import Run, evenly, note, over_steps, read_table, step_of
from d1ray.report.signs import SIGNS, count_signs
from d1ray.report.statistics import MOST_STEPS, groups_of

PLAIN = ("rollout", "policy_version", "generator", "forwards", "correct", "formatted", "parsed", "failure")
NUMBERS = ("reward", "advantage", "partial")  # rounded
PLAYED = ("completion_ids", "step_map", "sampler_logps")
COLUMNS = ("group_id", "task", "example", "text", "components", *PLAIN, *NUMBERS, *PLAYED)
FIELD_CHARACTERS = 500  # of one field of an example; a demonstration may be long


class Vocabulary:
    """The tokens that occur, as they are written: ``texts``, and ``ends``, the numbers of those that end a
    completion. Runs may have different tokenizers; what is written alike is one token here."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.ends: set[int] = set()
        self._numbers: dict[tuple[str, bool], int] = {}

    def number(self, text: str, ends: bool) -> int:
        """The place of a token in ``texts``."""
        number = self._numbers.setdefault((text, ends), len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
            if ends:
                self.ends.add(number)
        return number

    def joined(self, numbers: Sequence[int]) -> str:
        """The text up to the first end."""
        stop = next((place for place, number in enumerate(numbers) if number in self.ends), len(numbers))
        return "".join(self.texts[number] for number in numbers[:stop])


@dataclass
class Sample:
    """The completions of all runs, in columns.

    Attributes:
        rules: for each run, which of its completions are here.
        vocabulary: the tokens of the completions.
        groups: a row a prompt: run, step, group, task, prompt and what its answer is checked against.
        rows: a row a completion, columns by name; ``group`` is an index into ``groups``.
    """

    rules: list[str] = field(default_factory=list)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    groups: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, list[Any]] = field(default_factory=dict)


def sample(runs: Sequence[Run], budget: int) -> Sample:
    """About ``budget`` tokens of completions, an equal part of them from each run."""
    taken = Sample()
    for index, run in enumerate(runs):
        chosen, rule = _choose(run, budget // len(runs))
        taken.rules.append(rule)
        if chosen:
            _take(index, run, chosen, taken)
    return taken


def token_numbers(run: Run, vocabulary: Vocabulary) -> Callable[[int], int]:
    """The place in ``vocabulary`` of each token id, as the run's own tokenizer writes it.

    Where no model folder holds one, ids are written as numbers, and that is noted as missing.
    """
    folders = [run.path / "models" / name for name in ("rl", "sft", "base")]
    folders += [Path(path)] if (path := run.setting("model.path")) else []
    folder = next((folder for folder in folders if (folder / "tokenizer_config.json").is_file()), None)
    tokenizer, eos, why = None, -1, "no folder in models/ holds a tokenizer"
    if folder is not None:
        try:
            tokenizer, eos = load_tokenizer(folder), read_config(folder).eos_token_id
        except (UserError, OSError) as error:
            why = str(error)
    if tokenizer is None:
        note(run.missing, f"tokens are shown as numbers: {why}")

    @cache
    def number(token: int) -> int:
        text = tokenizer.decode([token], clean_up_tokenization_spaces=False) if tokenizer else ""
        return vocabulary.number(text or f"⟨{token}⟩", token == eos)

    return number


def _take(index: int, run: Run, chosen: Mapping[Path, Sequence[slice]], taken: Sample) -> None:
    number = token_numbers(run, taken.vocabulary)
    for file, groups in chosen.items():
        table = read_table(run, file, COLUMNS)
        if table is None:
            continue
        for rows in groups:
            part = table.slice(rows.start, rows.stop - rows.start)
            taken.groups.append(_group(index, step_of(file), part))
            columns = _columns(part, taken.vocabulary, number)
            columns["group"] = [len(taken.groups) - 1] * part.num_rows
            for name, values in columns.items():
                taken.rows.setdefault(name, []).extend(values)


def _choose(run: Run, budget: int) -> tuple[dict[Path, list[slice]], str]:
    """Groups by file, and the rule in words."""
    read = over_steps(run.rollouts, MOST_STEPS)
    every: list[tuple[Path, slice]] = []
    tokens = rows = 0
    for file in read:
        table = read_table(run, file, ("group_id",))
        if table is None or pa.types.is_null(table.schema.field("group_id").type):
            continue
        if not tokens and (first := read_table(run, file, ("completion_ids",))) is not None:
            tokens, rows = sum(len(ids) for ids in first["completion_ids"].to_pylist() if ids), first.num_rows
        every += [(file, group) for group in groups_of(table)]
    if not every:
        return {}, "none are stored"
    size = every[0][1].stop - every[0][1].start
    most = max(2, budget // max(1, tokens * size // max(1, rows)))
    kept = evenly(every, most)
    chosen: dict[Path, list[slice]] = {}
    for file, group in kept:
        chosen.setdefault(file, []).append(group)
    rule = (
        f"all {len(every):,} groups"
        if len(kept) == len(every)
        else (f"{len(kept):,} of {len(every):,} groups, at equal distances over the run")
    )
    if len(read) < len(run.rollouts):
        rule += f", from {len(read):,} of {len(run.rollouts):,} steps"
    return chosen, rule


def _group(run: int, step: int, part: pa.Table) -> dict[str, Any]:
    text = part["example"][0].as_py()
    example = json.loads(text) if text else {}
    fields = {
        str(name): value if len(value) <= FIELD_CHARACTERS else value[:FIELD_CHARACTERS] + " …"
        for name, value in (
            (n, v if isinstance(v, str) else json.dumps(v)) for n, v in example.get("fields", {}).items()
        )
    }
    return {
        "run": run,
        "step": step,
        "group": part["group_id"][0].as_py(),
        "task": part["task"][0].as_py(),
        "prompt": example.get("prompt", ""),
        "prefill": example.get("prefill", ""),
        "fields": fields,
    }


def _columns(part: pa.Table, vocabulary: Vocabulary, number: Callable[[int], int]) -> dict[str, list[Any]]:
    """Columns of a group's completions. ``text`` is null where it is what the tokens say up to the first end;
    ``probability`` is in thousandths."""
    texts = part["text"].to_pylist()
    written = [[number(token) for token in ids or []] for ids in part["completion_ids"].to_pylist()]
    names = [sign.name for sign in SIGNS]
    return (
        {name: part[name].to_pylist() for name in PLAIN}
        | {name: [_rounded(value) for value in part[name].to_pylist()] for name in NUMBERS}
        | {
            "components": [
                {name: _rounded(value) for name, value in row or ()} for row in part["components"].to_pylist()
            ],
            "signs": [[names.index(name) for name in count_signs(text or "")] for text in texts],
            "tokens": written,
            "steps": [steps or [] for steps in part["step_map"].to_pylist()],
            "probability": [_thousandths(logps) for logps in part["sampler_logps"].to_pylist()],
            "text": [
                None if text == vocabulary.joined(ids) else text
                for text, ids in zip(texts, written, strict=True)
            ],
        }
    )


def _thousandths(logps: Sequence[float] | None) -> list[int]:
    thousandths: list[int] = np.rint(1000 * np.exp(np.minimum(logps or [], 0.0))).astype(int).tolist()
    return thousandths


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.4g}")
