"""When two mathematical answers are the same."""

import pytest

from d1ray.tasks.equivalence import equivalent

SAME = [
    ("\\frac{1}{2}", "0.5"),
    ("\\dfrac12", "\\frac{1}{2}"),
    ("x = 5", "5"),
    ("5 \\text{ cm}", "5"),
    ("10", "10^\\circ"),
    ("\\text{Tuesday}", "Tuesday"),
    ("(1, 2)", "(1,2)"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\pi/2)"),
    ("2\\sqrt{2}", "\\sqrt{8}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("52_8", "52_{8}"),
    ("2^{2^3}", "256"),
    ("1,000", "1000"),
    ("\\$18.90", "18.90"),
    ("[0,1)", "\\left[0,1\\right)"),
    ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"),
    ("50\\%", "50"),
    ("f(x) = x+1", "x + 1"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
]
OTHER = [
    ("1", "2"),
    ("52_8", "52_9"),
    ("(1,2)", "(2,1)"),
    ("[0,1)", "[0,1]"),
    ("\\sqrt{8}", "\\sqrt{2}"),
    ("x+1", "x-1"),
    ("0.33", "\\frac{1}{3}"),
    ("Monday", "Tuesday"),
    ("", "5"),
    ("\x00", "5"),
    ("12", "1,2"),
    ("43", "43,500"),
    ("9^{9^{9^9}}", "1"),
    ("\\frac{1}{2}^{9^9}", "\\frac{1}{2}"),
    ("9^{3 \\cdot 10^8}", "1"),
    ("2^{x+99!}", "1"),
    ("10000!!", "1"),
    ("\\frac{" * 50, "1"),
]


@pytest.mark.parametrize(("answer", "gold"), SAME)
def test_equal_answers_are_the_same_either_way_round(answer, gold):
    assert equivalent(answer, gold)
    assert equivalent(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), OTHER)
def test_other_answers_are_not(answer, gold):
    assert not equivalent(answer, gold)
