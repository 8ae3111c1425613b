"""Exact arithmetic on expressions that a model wrote, with every cost bounded and no ``eval``.

Grammar, lowest precedence first::

    sum     = product (("+" | "-") product)*
    product = factor (("*" | "/") factor)*
    factor  = "-" factor | "(" sum ")" | integer
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

MAX_LENGTH = 200  # characters
MAX_DEPTH = 20  # nested parentheses and unary minuses
MAX_DIGITS = 9  # of one integer

SPELLINGS = {"×": "*", "÷": "/", "\\times": "*", "\\div": "/"}
TOKEN = re.compile(r"([0-9]+)|([-+*/()×÷]|\\times(?![A-Za-z])|\\div(?![A-Za-z]))|([ \t\r\n]+)|.", re.DOTALL)
END = ""


class ExpressionError(ValueError):
    """The text is no expression, has no value (division by zero), or exceeds a limit."""


class Expression(NamedTuple):
    """The value, the integers in the order written, and the operations used, a subset of ``+-*/``."""

    value: Fraction
    numbers: list[int]
    operations: frozenset[str]


def parse_expression(text: str) -> Expression:
    """Parses and evaluates ``text``. Raises ``ExpressionError``.

    Accepted are integers, ``+ - * /``, ``× ÷ \\times \\div`` and parentheses. Everything else is an error:
    decimals (``4.9`` is not the numbers 4 and 9), powers, ``//`` and implied multiplication.

    Example:
        >>> parse_expression("(3 - 1) / 4").value
        Fraction(1, 2)
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"longer than {MAX_LENGTH} characters")
    parser = _Parser([*_tokens(text), END])
    value = parser.sum(depth=0)
    if parser.next != END:
        raise ExpressionError(f"{parser.next!r} is not expected here")
    return Expression(value, parser.numbers, frozenset(parser.operations))


def _tokens(text: str) -> Iterator[str]:
    for match in TOKEN.finditer(text):
        integer, symbol, space = match.groups()
        if integer and len(integer) > MAX_DIGITS:
            raise ExpressionError(f"an integer of more than {MAX_DIGITS} digits")
        if integer or symbol:
            yield integer or SPELLINGS.get(symbol, symbol)
        elif not space:
            raise ExpressionError(f"{match.group()!r} is not part of an expression")


class _Parser:
    """Recursive descent: one method a rule of the grammar, each consuming what it recognises."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = iter(tokens)
        self.next = next(self.tokens)
        self.numbers: list[int] = []
        self.operations: set[str] = set()

    def take(self) -> str:
        token, self.next = self.next, next(self.tokens, END)
        if token in ("+", "-", "*", "/"):
            self.operations.add(token)
        return token

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.next in ("+", "-"):
            value = value + self.product(depth) if self.take() == "+" else value - self.product(depth)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.factor(depth)
        while self.next in ("*", "/"):
            if self.take() == "*":
                value *= self.factor(depth)
            elif divisor := self.factor(depth):
                value /= divisor
            else:
                raise ExpressionError("division by zero")
        return value

    def factor(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise ExpressionError(f"nested more than {MAX_DEPTH} deep")
        token = self.take()
        if token == "-":
            return -self.factor(depth + 1)
        if token == "(":
            value = self.sum(depth + 1)
            if self.take() != ")":
                raise ExpressionError("a parenthesis is not closed")
            return value
        if token.isdigit():
            self.numbers.append(int(token))
            return Fraction(int(token))
        raise ExpressionError(
            f"a number is expected, not {token!r}" if token else "a number is expected at the end"
        )
