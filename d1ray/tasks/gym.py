"""Any data set of reasoning-gym by its name, e.g. ``reasoning_gym:mini_sudoku``."""

import inspect
import json
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from d1ray.config.errors import DataError
from d1ray.tasks.answers import MAX_ANSWER, final_answer, tagged
from d1ray.tasks.task import DemonstrationStyle, Example, Score, Split, Task

if TYPE_CHECKING:
    import numpy as np

PREFIX = "reasoning_gym:"
TEMPLATE = """\
{question}

Think step by step between <reasoning> and </reasoning>. Then give the answer alone between <answer> and
</answer>."""
MAX_TRIES = 1000
HASH_ORDERED = {"isomorphic_strings", "polynomial_multiplication", "ransom_note"}  # they iterate over sets

MAX_CODE = 500  # characters of an answer that a scorer may evaluate
EVALUATES = re.compile(  # or hands on to another scorer, which may
    r"(?:\b(?:eval|exec|sympify|parse_latex)|(?<!def )\bparse_expr|(?<!re\.)\bcompile|\.score_answer)\("
)
EVALUATE_NO_ANSWER = {  # only what they made themselves
    "basic_arithmetic",
    "bf",
    "bitwise_arithmetic",
    "codeio",
    "number_sorting",
    "propositional_logic",
}
FUNCTIONS = {
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
    *("exp", "log", "ln", "sqrt", "erf", "Abs"),
}
NAME, NUMBER = r"[A-Za-z_][A-Za-z0-9_]*", r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
TOKENS = re.compile(rf"{NUMBER}|{NAME}|[-+*/^=,()\[\]]|[ \t\r\n]+|(?P<other>.)", re.DOTALL)


class ReasoningGym(Task):
    """A data set of reasoning-gym (extra ``gym``); ``options`` are those of the data set's configuration.

    An example is a seed: the problem is made again from it wherever it is judged. Completions earn the score
    in [0, 1] that the data set's own scorer gives, and are correct where it is 1. Some scorers evaluate an
    answer as Python or sympy code: they see plain words, numbers, lists and arithmetic only.
    """

    placeholders: ClassVar[tuple[str, ...]] = ("question",)
    rewards: ClassVar[tuple[str, ...]] = ("score",)

    template: str = TEMPLATE
    options: Mapping[str, Any] = Field({}, description="of the data set, e.g. min_empty: 4")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        known = _gym().factory.DATASETS
        data_set = name.removeprefix(PREFIX)
        if data_set not in known:
            raise ValueError(f"reasoning-gym has no data set {data_set!r}; it has {', '.join(sorted(known))}")
        if data_set in HASH_ORDERED and sys.flags.hash_randomization:
            raise ValueError(
                f"{data_set} makes other problems in every process, unless their hashes are the same; "
                f"start d1ray with PYTHONHASHSEED=0"
            )
        return name

    @model_validator(mode="after")
    def _makes_an_entry(self) -> "ReasoningGym":
        try:
            self._entry(0)
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"options: {self.name} does not take {dict(self.options)}: {error}") from None
        return self

    def draw(self, split: Split, rng: "np.random.Generator") -> Example:
        for _ in range(MAX_TRIES):
            seed = int(rng.integers(2**31))
            question = str(self._entry(seed)["question"])
            if self.split_of(question) == split:
                return self._example(question, {"seed": seed})
        raise DataError(f"{self.name} has too few distinct problems: none of {split} in {MAX_TRIES} draws")

    def example(self, row: Mapping[str, Any]) -> Example:
        """Reads ``seed``, or a row that reasoning-gym wrote: ``question``, ``answer`` and ``metadata``."""
        if "seed" in row:
            seed = row["seed"]
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
                raise ValueError(f"seed must be a whole number from 0 to 2^31 - 1, found {seed!r:.60}")
            return self._example(str(self._entry(seed)["question"]), {"seed": seed})
        question = row["question"]
        if not isinstance(question, str) or not isinstance(row["metadata"], Mapping):
            raise ValueError("question must be text and metadata a mapping, as reasoning-gym writes them")
        fields = {name: row[name] for name in ("question", "answer", "metadata")}
        return self._example(question, fields)

    def _example(self, question: str, fields: Mapping[str, Any]) -> Example:
        return Example(self.name, question, self.prompt(question=question), fields, prefill=self.prefill)

    def demonstration(self, example: Example, style: DemonstrationStyle, rng: "np.random.Generator") -> str:
        """The data set's own answer; corrupted, either without its tags or with its characters shuffled."""
        answer = self._entry_of(example)["answer"]
        if not isinstance(answer, str) or not answer:
            raise ValueError(f"{self.name} gives no answer to demonstrate")
        if style == "clean":
            return tagged(answer)
        return str(answer) if rng.random() < 0.5 else tagged("".join(rng.permutation(list(answer))))

    def prepare(self) -> None:
        self._entry(0)

    def judge(self, example: Example, text: str) -> Score:
        answer = final_answer(text)
        if answer is None:
            return Score({"score": 0.0}, correct=False, partial=0.0, formatted=False)
        entry, data_set, options = self._entry_of(example), self.name.removeprefix(PREFIX), self._options()
        if evaluates(data_set) and not is_harmless(answer.text):
            return Score({"score": 0.0}, correct=False, partial=0.0, formatted=answer.well_tagged)
        try:
            score = float(_scorer(data_set, options).score_answer(answer.text[:MAX_ANSWER], entry=entry))
            score = min(1.0, max(0.0, score))
        except Exception:  # of some hundred scorers, each with its own way to fail on garbage
            score = 0.0
        return Score({"score": score}, score == 1, score, answer.well_tagged, parsed=answer.text)

    def _entry_of(self, example: Example) -> Mapping[str, Any]:
        seed = example.fields.get("seed")
        return example.fields if seed is None else self._entry(seed)

    def _entry(self, seed: int) -> Mapping[str, Any]:
        return _entry(self.name.removeprefix(PREFIX), self._options(), seed)

    def _options(self) -> str:
        return json.dumps(dict(self.options))


def gym_class(name: str) -> type[Task]:
    """One class for all data sets."""
    return ReasoningGym


def is_harmless(answer: str) -> bool:
    """Whether evaluating ``answer`` as code, once or again and again, can do nothing but compute a value.

    It holds numbers, names, arithmetic and lists: no string, no attribute, no index, no dunder, and no call
    but of a few functions. Names are single letters, those functions and ``pi``; where there are no brackets,
    words in capitals, too, which no keyword of Python is.
    """
    if len(answer) > MAX_CODE or "__" in answer:
        return False
    found = list(TOKENS.finditer(answer))
    tokens = [match.group() for match in found if not match.group().isspace()]
    if any(match["other"] for match in found):
        return False
    for before, token in pairwise(tokens):
        ends_value = before[-1].isalnum() or before[-1] in "._)]"
        is_call = token == "(" and before not in FUNCTIONS
        if ends_value and (is_call or token == "[" or (before[-1] == "." and token[0].isalpha())):
            return False
    words = {token for token in tokens if re.match("[A-Za-z_].", token)} - FUNCTIONS - {"pi"}
    return not words or (not {"(", "["} & set(tokens) and all(re.fullmatch("[A-Z]+", word) for word in words))


@lru_cache(maxsize=64)
def evaluates(name: str) -> bool:
    """Whether the data set's module evaluates text, and that may be the answer."""
    if name in EVALUATE_NO_ANSWER:
        return False
    module = inspect.getmodule(_gym().factory.DATASETS[name][0])
    return module is None or bool(EVALUATES.search(inspect.getsource(module)))


@lru_cache(maxsize=64)  # a group's completions are of one problem
def _entry(name: str, options: str, seed: int) -> Mapping[str, Any]:
    entry: Mapping[str, Any] = _gym().create_dataset(name, seed=seed, size=1, **json.loads(options))[0]
    return entry


@lru_cache(maxsize=8)
def _scorer(name: str, options: str) -> Any:
    return _gym().create_dataset(name, seed=0, size=1, **json.loads(options))


def _gym() -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise ValueError("reasoning-gym is not installed; pip install 'd1ray[gym]'") from None
    return reasoning_gym
