"""Expressions: exact values, every operand counted, everything else refused at once."""

from fractions import Fraction

import numpy as np
import pytest

from d1ray.tasks.expression import MAX_DEPTH, MAX_LENGTH, ExpressionError, parse_expression


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("10-4-3", 3),
        ("24/4/2", 3),
        ("24/(4/2)", 12),
        ("1/3+1/6", Fraction(1, 2)),
        ("-3+10", 7),
        ("2--3", 5),
        ("-(2+3)*4", -20),
        ("6 × 7", 42),
        ("42 ÷ 7", 6),
        ("6\\times7", 42),
        ("42 \\div 7", 6),
        (" \n(1\t+ 2) ", 3),
        ("007", 7),
    ],
)
def test_an_expression_has_its_exact_value(text, value):
    assert parse_expression(text).value == value


def test_numbers_come_in_the_order_written_and_repeat():
    assert parse_expression("44-(35+19)/44").numbers == [44, 35, 19, 44]


def test_operations_are_reported_in_one_spelling():
    assert parse_expression("8 ÷ (1 \\times 2) - 3").operations == frozenset("/*-")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "seven",
        "4.9+5",
        "4,9",
        "1e3",
        "2**3",
        "2^3",
        "7//2",
        "7%2",
        "+3",
        "3+",
        "*3",
        "3 4",
        "2(3)",
        "(2)(3)",
        "()",
        "(3",
        "3)",
        ")3(",
        "3+4=7",
        "\\timesx",
        "3\\timesx4",
        "\x00",
        "3\x00+4",
        "３+４",
        "٣+4",
        "\ud800",
        "__import__('os')",
        "1234567890",
    ],
)
def test_anything_else_is_an_expression_error(text):
    with pytest.raises(ExpressionError):
        parse_expression(text)


@pytest.mark.parametrize("text", ["1/0", "5/(3-3)", "0/0", "1/-0"])
def test_division_by_zero_is_an_expression_error(text):
    with pytest.raises(ExpressionError, match="division by zero"):
        parse_expression(text)


@pytest.mark.parametrize("opening", ["(", "-", "-("])
def test_depth_is_limited_before_python_s_own_limit(opening):
    text = opening * (MAX_LENGTH // len(opening))
    with pytest.raises(ExpressionError, match=f"nested more than {MAX_DEPTH}"):
        parse_expression(text)


def test_the_deepest_allowed_nesting_is_parsed():
    assert parse_expression("(" * MAX_DEPTH + "5" + ")" * MAX_DEPTH).value == 5


@pytest.mark.parametrize("text", ["9" * 1_000_000, "(" * 10_000 + ")" * 10_000, "1+" * 500_000 + "1"])
def test_a_monster_is_refused_by_its_length(text):
    with pytest.raises(ExpressionError, match="longer than"):
        parse_expression(text)


def test_the_largest_value_the_limits_allow_is_exact():
    text = "*".join(["999999999"] * 20)
    assert len(text) <= MAX_LENGTH
    assert parse_expression(text).value == 999999999**20


def test_random_strings_of_expression_characters_agree_with_python_where_both_accept():
    """Python is the oracle, on strings drawn here that the parser accepts: none holds a power."""
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(2000):
        text = "".join(rng.choice(list("0123+-*/() "), size=rng.integers(1, 12)))
        try:
            parsed = parse_expression(text)
        except ExpressionError:
            continue
        accepted += 1
        exact = "".join(f"Fraction({t})" if t.isdigit() else t for t in _split_numbers(text))
        assert parsed.value == eval(exact, {"Fraction": lambda *n: Fraction(*n)}), text
    assert accepted > 100


def _split_numbers(text):
    parts = [""]
    for char in text:
        if char.isdigit() and parts[-1].isdigit():
            parts[-1] += char
        else:
            parts.append(char)
    return [str(int(p)) if p.isdigit() else p for p in parts]
