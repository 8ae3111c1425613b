"""Countdown: reach a target from a few numbers, each used exactly once (d1, Section 4)."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from d1ray.config.errors import DataError
from d1ray.tasks.answers import final_answer, tagged
from d1ray.tasks.countdown_search import OPERATIONS, random_expression, solve
from d1ray.tasks.expression import ExpressionError, parse_expression
from d1ray.tasks.numbers import plain
from d1ray.tasks.task import DemonstrationStyle, Example, Score, Split, Task

if TYPE_CHECKING:
    import numpy as np

TEMPLATE = """\
Numbers: {numbers}. Target: {target}.
Find an arithmetic expression that equals the target and uses every number exactly once.
Allowed are {operations} and parentheses.
Write <reasoning>your steps</reasoning> and then <answer>the expression</answer>."""

MAX_TRIES = 50_000  # of one draw; ordinary options need about 10 (train) to 1,000
WRITTEN = re.compile(r"[0-9(\-][\w+\-*/().^!,\\ \t]*")
OPERATOR = re.compile(r"[0-9)]\s*[-+*/]")
BRACKETS = str.maketrans("[]{}", "()()")
LARGEST = 999_999_999  # what an expression can spell


class Countdown(Task):
    """Countdown, generated with a solution or read from ``nums`` and ``target`` columns."""

    placeholders: ClassVar[tuple[str, ...]] = ("numbers", "target")
    rewards: ClassVar[tuple[str, ...]] = ("answer",)

    name: Literal["countdown"] = "countdown"
    template: str = TEMPLATE
    numbers: Annotated[
        int, Field(strict=True, ge=2, le=6, description="how many, in a generated problem")
    ] = 3
    max_number: Annotated[int, Field(strict=True, ge=1, le=LARGEST)] = 99
    max_target: Annotated[int, Field(strict=True, ge=1, le=LARGEST)] = 99
    operations: str = Field(OPERATIONS, description="the ones an expression may use")

    @field_validator("operations")
    @classmethod
    def _known_operations(cls, operations: str) -> str:
        if not operations or not set(operations) <= set(OPERATIONS):
            raise ValueError(f"expected some of {OPERATIONS}, found {operations!r}")
        return operations

    def draw(self, split: Split, rng: "np.random.Generator") -> Example:
        """Draws numbers and an expression over them whose value is an integer target in range."""
        for _ in range(MAX_TRIES):
            numbers = rng.integers(1, self.max_number + 1, size=self.numbers).tolist()
            drawn = random_expression(numbers, self.operations, rng)
            if drawn is None or drawn.value.denominator != 1 or not 1 <= drawn.value <= self.max_target:
                continue
            target = int(drawn.value)
            if self.split_of(_key(numbers, target)) == split:
                return self._example(numbers, target, expression=drawn.text)
        raise DataError(
            f"no {split} problem of Countdown found in {MAX_TRIES} draws: {self.numbers} numbers up to "
            f"{self.max_number} with {self.operations} rarely reach a target up to {self.max_target}; "
            f"raise task.max_target, lower task.max_number or allow more task.operations"
        )

    def example(self, row: Mapping[str, Any]) -> Example:
        """Reads ``nums`` (2 to 6 positive integers) and ``target`` (a positive integer)."""
        numbers, target = row["nums"], row["target"]
        if isinstance(target, str) and target.isascii() and target.isdigit():  # a cell of a CSV file
            target = int(target[:10])
        if not isinstance(numbers, list) or not 2 <= len(numbers) <= 6 or not all(map(_is_number, numbers)):
            raise ValueError(f"nums must be a list of 2 to 6 positive integers, found {numbers!r:.60}")
        if not _is_number(target):
            raise ValueError(f"target must be a positive integer, found {target!r:.60}")
        return self._example(numbers, target)

    def _example(self, numbers: list[int], target: int, **solution: str) -> Example:
        prompt = self.prompt(
            numbers=", ".join(map(str, numbers)), target=str(target), operations=" ".join(self.operations)
        )
        fields = {"nums": numbers, "target": target, **solution}
        return Example(self.name, _key(numbers, target), prompt, fields, prefill=self.prefill)

    def demonstration(self, example: Example, style: DemonstrationStyle, rng: "np.random.Generator") -> str:
        """A solution; corrupted, either its tags are missing or the expression misses the target.

        A row of a file brings no solution: it is searched for, and ``ValueError`` says that there is none.
        """
        numbers, target = example.fields["nums"], example.fields["target"]
        if style == "corrupted" and rng.random() < 0.5:
            while True:  # some expression misses the target: a + b and a - b differ
                wrong = random_expression(numbers, OPERATIONS, rng)
                if wrong is not None and wrong.value != target:
                    return tagged(wrong.text)
        solution = example.fields.get("expression") or solve(numbers, target, self.operations)
        if solution is None:
            raise ValueError(f"no expression over {numbers} with {self.operations} equals {target}")
        return tagged(solution) if style == "clean" else str(solution)

    def vote(self, parsed: str) -> str:
        """The value: every expression that reaches it in its own way is a vote for it."""
        return str(parse_expression(parsed).value)

    def judge(self, example: Example, text: str) -> Score:
        """d1's reward: 1 for a right answer, 0.1 for one that is not, 0 without one.

        Of the answer's last line with an operator the expression counts: what the model says it equals is its
        arithmetic, not its answer.
        """
        answer = final_answer(text)
        try:
            written = _expression(answer.text) if answer else ""
            expression = parse_expression(written)
        except ExpressionError:
            return Score({"answer": 0.0}, correct=False, partial=0.0, formatted=False)
        correct = (
            expression.value == example.fields["target"]
            and sorted(expression.numbers) == sorted(example.fields["nums"])
            and expression.operations <= set(self.operations)
        )
        return Score(
            {"answer": 1.0 if correct else 0.1},
            correct,
            partial=float(correct),
            formatted=answer is not None and answer.well_tagged,
            parsed=written,
        )


def _expression(text: str) -> str:
    """What is written in the last line that has an operator, or else a number; "" where there is none.

    Of an equation the first side with an operator is meant. Words before and after it are left out; a
    decimal, a power or a letter next to the digits stays in, for the parser to refuse.
    """
    if text.strip().isdecimal():
        return text.strip()
    for line in reversed(plain(text).translate(BRACKETS).splitlines()):
        sides = line.split("=")
        side = next((side for side in sides if OPERATOR.search(side)), "")
        found = [part.strip(" \t,;:").removesuffix(".") for part in WRITTEN.findall(side)]
        found = [part for part in found if OPERATOR.search(part)]
        if found:
            return str(found[-1])
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _key(numbers: Sequence[int], target: int) -> str:
    return f"{' '.join(map(str, sorted(numbers)))} = {target}"
