r"""Completions as diffusion models write them, whose verdicts are known by construction.

Every content (an answer, dressed in some way, right or wrong) is put into every wrapping (tags, boxes, a
cut-off ending), none of which changes what the answer is: more than 200 completions a task.
"""

import pytest

from d1ray.config.kinds import load_task

WRAPPINGS = {
    "as asked for": "<reasoning>\nFirst, step by step.\n</reasoning>\n<answer>\n\\boxed{%s}\n</answer>",
    "end of turn": "<reasoning>\nSo.\n</reasoning>\n<answer>\n\\boxed{%s}\n</answer><|eot_id|><|endoftext|>",
    "tags only": "<reasoning>\nSo.\n</reasoning>\n<answer>\n%s\n</answer>",
    "cut off": "<reasoning>\nSo we get\n</reasoning>\n<answer>\n%s",
    "box, cut off": "<reasoning>\nSo we get\n<answer>\n\\boxed{%s",
    "box in prose": "We work it out. Therefore, the answer is $\\boxed{%s}$.",
    "box before empty tags": "So \\boxed{%s}\n</reasoning>\n<answer>\n\n</answer>",
    "box before a placeholder": "So \\boxed{%s}\n<answer>\n\\boxed{...}\n</answer>",
    "written twice": "<answer>\\boxed{%s}</answer>\n<answer>\\boxed{%s}</answer>",
    "box on the way": "First \\boxed{1}, then \\boxed{77}.\n<answer>\\boxed{%s}</answer>",
    "after the end": "<answer>\\boxed{%s}</answer><|eot_id|><answer>\\boxed{123456}</answer>",
    "repeated words": "The the answer answer is is\n<answer>\n\\boxed{%s}\n</answer>\n</answer>",
    "no opening reasoning": "steps</reasoning>\n\n<answer>\\boxed{%s}</answer>",
}

GSM8K_RIGHT = [
    *("43500", "43,500", "43{,}500", "\\$43,500", "$43500$", "43500 dollars", "43500\\text{ dollars}"),
    *("43500.00", "43,500.", "x = 43500", "435 \\times 100 = 43500", "87000/2", "\\frac{87000}{2}"),
    *("43 500", "\\text{43,500 people}", "Total: 43500"),
]
GSM8K_WRONG = [
    *("43", "4350", "43501", "43.5", "-43500", "435000", "435 \\times 100 = 43501", "\\frac{87000}{3}"),
    *("43,501", "unknown", "4,3500,1", "43500.5"),
]
COUNTDOWN_RIGHT = [
    *(
        "44+19+35",
        "44 + 19 + 35 = 98",
        "19+(44+35)",
        "(44+19)+35 = 63+35 = 98",
        "$44+19+35$",
        "35 + 44 + 19.",
    ),
    *("\\left(44+19\\right)+35", "[44+19]+35", "44 + 35 + 19 = 98.", "98 = 44+19+35", "\\text{44+19+35}"),
]
COUNTDOWN_WRONG = [
    *("44+19-35", "44+54", "98", "44+19+35+0", "44\\times19\\times35", "44+19=63, 63+35=98", "49+49"),
    *("44+19+35.0", "44**19+35", "4.4+19+35", "441935", "44+19+35-1+1", "44+19+53", "44+19+35!", "44+x+35"),
]
SUDOKU_RIGHT = [
    *(
        "2134341243211243",
        "2134 3412 4321 1243",
        "2 1 3 4 3 4 1 2 4 3 2 1 1 2 4 3",
        "2134\\\\3412\\\\4321\\\\1243",
    ),
    *("[[2,1,3,4],[3,4,1,2],[4,3,2,1],[1,2,4,3]]", "2134|3412|4321|1243", "```2134341243211243```"),
    *("2,1,3,4,3,4,1,2,4,3,2,1,1,2,4,3", "The grid is 2134341243211243"),
]
SUDOKU_WRONG = [
    *("213434124321124", "21343412432112433", "2134341243211234", "1234341221434321", "2004001203201003"),
    *("1111111111111111", "2134 3412 4321", "2134341243211245", "none", "2143341243211234"),
]
MATH = {
    "\\frac{1}{2}": (
        ["\\frac{1}{2}", "\\dfrac{1}{2}", "\\frac12", "1/2", "0.5", "x = \\frac{1}{2}", "\\frac{2}{4}", ".5"],
        ["2", "\\frac{1}{3}", "-\\frac{1}{2}", "0.05", "\\frac{21}{2}"],
    ),
    "(3,\\frac{\\pi}{2})": (
        ["(3, \\frac{\\pi}{2})", "\\left(3,\\frac{\\pi}{2}\\right)", "(3,\\pi/2)"],
        ["(3,\\pi)", "(\\frac{\\pi}{2},3)", "3"],
    ),
    "2\\sqrt{2}": (["2\\sqrt{2}", "\\sqrt{8}", "2 \\sqrt 2"], ["\\sqrt{2}", "2", "2\\sqrt{3}"]),
}
PUZZLE = {"puzzle": "2004001203201003", "solution": "2134341243211243"}
NUMBERS = {"nums": [44, 19, 35], "target": 98}

CASES = [
    *(("gsm8k", {"answer": "43500"}, c, True) for c in GSM8K_RIGHT),
    *(("gsm8k", {"answer": "43500"}, c, False) for c in GSM8K_WRONG),
    *(("countdown", NUMBERS, c, True) for c in COUNTDOWN_RIGHT),
    *(("countdown", NUMBERS, c, False) for c in COUNTDOWN_WRONG),
    *(("sudoku", PUZZLE, c, True) for c in SUDOKU_RIGHT),
    *(("sudoku", PUZZLE, c, False) for c in SUDOKU_WRONG),
    *(("math", {"answer": gold}, c, True) for gold, (right, _) in MATH.items() for c in right),
    *(("math", {"answer": gold}, c, False) for gold, (_, wrong) in MATH.items() for c in wrong),
]


@pytest.mark.parametrize("name", ["countdown", "gsm8k", "math", "sudoku"])
@pytest.mark.parametrize("wrapping", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_an_answer_is_judged_by_what_it_says_however_it_is_wrapped(name, wrapping):
    task = load_task(name)
    cases = [case for case in CASES if case[0] == name]
    assert len(cases) * len(WRAPPINGS) > 200
    judged = {
        content: task.score(task.example(row), wrapping.replace("%s", content)).correct
        for _, row, content, _ in cases
    }
    assert judged == {content: correct for _, _, content, correct in cases}
