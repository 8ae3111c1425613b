"""Reading numbers however they are written."""

from fractions import Fraction

import pytest

from d1ray.tasks.numbers import exact_number, read_number

READ = {
    "18": 18,
    "43,500": 43500,
    "43{,}500": 43500,
    "1\\,234": 1234,
    "1 234": 1234,
    "1,000,000": 1000000,
    "\\$18": 18,
    "$1,234.50": Fraction(123450, 100),
    "-$5": -5,
    "12\\%": 12,
    "3/4": Fraction(3, 4),
    "\\frac{3}{4}": Fraction(3, 4),
    "\\dfrac34": Fraction(3, 4),
    "2\\frac{1}{2} hours": Fraction(5, 2),
    "2 1/2": Fraction(5, 2),
    "½": Fraction(1, 2),
    "\\frac{\\frac{1}{2}}{3}": Fraction(1, 6),
    "18 eggs": 18,
    "18\\text{ dollars}": 18,
    "\\text{18 dollars}": 18,
    "5\\,cm": 5,
    "18 cm^2": 18,
    "18^{\\circ}": 18,
    "x = 18": 18,
    "3 + 4 = 7": 7,
    "3 \\times 6 = 18 dollars": 18,
    "6 \\times 3": 18,
    "3*(2+4)": 18,
    "−5": -5,
    "18.": 18,
    "18.00": 18,
    ".5": Fraction(1, 2),
    "5.5 hours": Fraction(11, 2),
    "**18**": 18,
    "\\(18\\)": 18,
    "{18}": 18,
    "18 apples and 4 oranges": 18,
    "The answer is 18.": 18,
    "10-5": 5,
}


@pytest.mark.parametrize(("text", "number"), READ.items(), ids=READ.keys())
def test_a_number_is_read_exactly(text, number):
    assert read_number(text) == number


@pytest.mark.parametrize("text", ["", "no", "٣", "３", "1/0", "9" * 50, "9**9**9**9", "\x00", "\ud800"])
def test_what_is_no_number_is_not_read(text):
    assert read_number(text) is None


def test_the_last_number_is_read_where_asked_for():
    assert read_number("5 boxes of 4 make 20 apples", "last") == 20
    assert read_number("5 boxes of 4 make 20 apples", "first") == 5


def test_an_exact_number_has_no_words_around_it():
    assert exact_number(r"\frac{1}{2}") == Fraction(1, 2)
    assert exact_number("1,000") == 1000
    assert exact_number("2 apples") is None
    assert exact_number("x") is None
    assert exact_number("(1,2)") is None


@pytest.mark.parametrize("text", ["9" * 10**6, "(" * 10**6, "\\frac{" * 10**5, "1,000" * 10**5, "1/" * 10**6])
def test_a_monster_ends_and_is_no_number_or_a_short_one(text):
    number = read_number(text)
    assert number is None or abs(number) < 10**40
