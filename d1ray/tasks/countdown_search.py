"""Countdown expressions over given numbers: a random one, or one that reaches a target.

Both repeat the same move until one term is left: take two, join them with an operation, put the result back.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


OPERATIONS = "+-*/"
ATOM = "atom"


class Term(NamedTuple):
    """A value, its expression, and the operation applied last, which decides where parentheses are needed."""

    value: int | Fraction
    text: str
    operation: str = ATOM


def random_expression(numbers: Sequence[int], operations: str, rng: "np.random.Generator") -> Term | None:
    """A random expression that uses each of ``numbers`` once; ``None`` where it divides by zero."""
    terms = [Term(n, str(n)) for n in numbers]
    choices = rng.random((len(terms) - 1, 3)).tolist()
    for first, second, operation in choices:
        left = terms.pop(int(first * len(terms)))
        right = terms.pop(int(second * len(terms)))
        joined = join(left, operations[int(operation * len(operations))], right)
        if joined is None:
            return None
        terms.append(joined)
    return terms[0]


def solve(numbers: Sequence[int], target: int, operations: str) -> str | None:
    """An expression that uses each of ``numbers`` once and equals ``target``, or ``None``.

    The search is complete. Three or four numbers take milliseconds, six may take minutes.
    """
    seen: set[tuple[int | Fraction, ...]] = set()  # the same values are reached in many orders

    def search(terms: list[Term]) -> str | None:
        if len(terms) == 1:
            return terms[0].text if terms[0].value == target else None
        state = tuple(sorted(term.value for term in terms))
        if state in seen:
            return None
        seen.add(state)
        for i, j in combinations(range(len(terms)), 2):
            rest = [term for k, term in enumerate(terms) if k not in (i, j)]
            for joined in _joins(terms[i], terms[j], operations):
                if found := search([*rest, joined]):
                    return found
        return None

    return search([Term(n, str(n)) for n in numbers])


def _joins(a: Term, b: Term, operations: str) -> Iterator[Term]:
    for operation in operations:
        for left, right in ((a, b), (b, a)) if operation in "-/" else ((a, b),):
            if joined := join(left, operation, right):
                yield joined


def join(left: Term, operation: str, right: Term) -> Term | None:
    """``left operation right`` with only the parentheses it needs; ``None`` for a division by zero."""
    if operation == "/" and right.value == 0:
        return None
    match operation:
        case "+":
            value, left_needs, right_needs = left.value + right.value, "", ""
        case "-":
            value, left_needs, right_needs = left.value - right.value, "", "+-"
        case "*":
            value, left_needs, right_needs = left.value * right.value, "+-", "+-"
        case _:
            value, left_needs, right_needs = Fraction(left.value, right.value), "+-", "+-*/"
    text = f"{_enclosed(left, left_needs)}{operation}{_enclosed(right, right_needs)}"
    return Term(value, text, operation)


def _enclosed(term: Term, operations: str) -> str:
    return f"({term.text})" if term.operation in operations else term.text
