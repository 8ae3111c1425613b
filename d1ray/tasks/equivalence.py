r"""Whether two mathematical answers are the same: as text, as numbers, then by math-verify (sympy).

Most pairs are settled by the first two, which are exact and cheap. What could cost sympy more than a moment
(towers of powers, factorials, very long numbers or expressions) is settled by them alone.
"""

import logging
import re
from functools import lru_cache
from typing import Any

from d1ray.tasks.numbers import exact_number, plain

MAX_LENGTH = 300  # characters given to math-verify
MONSTER = re.compile(
    r"\d{25}|\^\s*\{?\s*-?\d{4}|\*\*|\^[^+=]{0,20}\^[^+=]{0,20}\^|\d{3}\s*!|!\s*!|[^\x00-\x7f]{20}"
    r"|\^\s*\{[^{}]{0,20}(?:\d\d\s*[\^!]|\d\s*\^\s*\{?\s*(?:\d\d|[5-9]))"  # 2^{9^9}; but 2^{2^3} is a number
)
VARIABLE = re.compile(r"^\s*[A-Za-z](?:_\{?\w\}?)?\s*=(?!=)(.*)$", re.DOTALL)
FUNCTION = re.compile(r"^\s*[A-Za-z]\s*\([A-Za-z]\)\s*=(?!=)(.*)$", re.DOTALL)
BASE = re.compile(r"\d_\{?(\d+)\}?\s*$")  # of a number such as 52_8
UNIT = re.compile(r"(?<=\S)\s*\\(?:text|mbox|textrm|mathrm)\s*\{[^{}]*\}(?:\^\{?\d\}?)?\s*\.?\s*$")


def equivalent(answer: str, gold: str) -> bool:
    """Whether ``answer`` states what ``gold`` does. Symmetric but for the order of trials; never raises.

    Example:
        >>> equivalent(r"x = \\frac{1}{2}", "0.5")
        True
    """
    for a, b in ((answer, gold), (_bare(answer), _bare(gold))):
        if not a.strip() or not b.strip():
            continue
        if _text(a) == _text(b):
            return True
        if (base := BASE.search(a)) and (other := BASE.search(b)) and base[1] != other[1]:
            return False
        first, second = exact_number(a), exact_number(b)
        if first is not None and second is not None:
            return first == second
    return _verified(_bare(answer), _bare(gold))


def canonical(answer: str) -> str:
    """An answer without its dressing: the same text for the same number, or for one expression as written."""
    bare = _bare(answer)
    number = exact_number(bare)
    return _text(bare) if number is None else str(number)


def _bare(text: str) -> str:
    """Without ``x =``, ``f(x) =`` and a trailing unit."""
    for pattern in (VARIABLE, FUNCTION):
        if (match := pattern.match(text)) and match[1].strip():
            text = match[1]
    return UNIT.sub("", text)


def _text(text: str) -> str:
    """What is left of an answer when dressing, spaces, and case are gone."""
    return re.sub(r"[\s$]|\\!", "", plain(text)).rstrip(".").casefold()


def _verified(answer: str, gold: str) -> bool:
    if any(len(t) > MAX_LENGTH or MONSTER.search(t) for t in (answer, gold)):
        return False
    math_verify = _math_verify()
    try:
        gold_parsed = _parsed(gold)
        # The time is limited by whoever runs the check (d1ray.tasks.checker).
        answer_parsed = math_verify.parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
        return bool(math_verify.verify(gold_parsed, answer_parsed, timeout_seconds=None))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return False  # sympy met something it cannot compare


@lru_cache(maxsize=4096)
def _parsed(gold: str) -> Any:
    return _math_verify().parse(f"\\boxed{{{gold}}}", parsing_timeout=None)


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    """Imported on first use: sympy takes a second."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    return math_verify
