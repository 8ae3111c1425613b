"""GSM8K: grade-school word problems whose answer is a number (Cobbe et al. 2021), with d1's rewards."""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from d1ray.tasks.answers import CLOSING, OPENING, Answer, final_answer, tagged
from d1ray.tasks.numbers import read_number
from d1ray.tasks.task import DemonstrationStyle, Example, Score, Task

if TYPE_CHECKING:
    import numpy as np

TEMPLATE = """\
{question}

Think step by step between <reasoning> and </reasoning>. Then give the answer, a number, as \\boxed{} between
<answer> and </answer>."""

STATED = re.compile(r"(?:####|answer\s*(?:is|:|=))([^\n]{1,100})", re.IGNORECASE)
ANNOTATION = re.compile(r"<<[^<>]*>>")  # the data set's calculator calls
TAG_LINES = ("<reasoning>\n", "\n</reasoning>\n", "\n<answer>\n", "\n</answer>")
MOST_TRAILING = 1000  # characters that are fined


class GSM8K(Task):
    """GSM8K, read from ``question`` and ``answer`` columns; an ``answer`` ends with ``#### number``."""

    placeholders: ClassVar[tuple[str, ...]] = ("question",)
    rewards: ClassVar[tuple[str, ...]] = ("xml_count", "soft_format", "strict_format", "integer", "correct")
    hub: ClassVar[tuple[str, str | None] | None] = ("openai/gsm8k", "main")

    name: Literal["gsm8k"] = "gsm8k"
    template: str = TEMPLATE

    def example(self, row: Mapping[str, Any]) -> Example:
        """Reads ``answer`` and, where completions are only scored, an optional ``question``."""
        question, answer = row.get("question", ""), row["answer"]
        if not isinstance(question, str):
            raise ValueError(f"question must be text, found {question!r:.60}")
        if isinstance(answer, bool) or _gold(answer) is None:
            raise ValueError(
                f"answer must be a number, or text that ends with #### number, found {answer!r:.60}"
            )
        fields = {"question": question, "answer": str(answer)}
        prompt = self.prompt(question=question)
        return Example(self.name, question or str(answer), prompt, fields, prefill=self.prefill)

    def demonstration(self, example: Example, style: DemonstrationStyle, rng: "np.random.Generator") -> str:
        """The data set's own solution; corrupted, either without its tags or with another number."""
        steps, _, answer = ANNOTATION.sub("", example.fields["answer"]).rpartition("####")
        reasoning = f"<reasoning>\n{steps.strip()}\n</reasoning>\n"
        answer = answer.strip()
        if style == "corrupted":
            if rng.random() < 0.5:
                return f"{steps.strip()}\n{answer}"
            answer = str(int(rng.integers(1000)))
        return reasoning + tagged(f"\n\\boxed{{{answer}}}\n")

    def judge(self, example: Example, text: str) -> Score:
        """d1's five rewards. The answer is compared exactly, as a rational number.

        Of a box the first number counts, of other words between answer tags the last, and of an equation its
        last side. Without box and tags only a statement counts: "the answer is 18", "#### 18".
        """
        answer = final_answer(text) or _stated(text)
        number = read_number(answer.text, "first" if answer.boxed else "last") if answer else None
        correct = number is not None and number == _gold(example.fields["answer"])
        components = {
            "xml_count": xml_count(text),
            "soft_format": 0.5 if in_tags(text) else 0.0,
            "strict_format": 0.5 if in_tag_lines(text) else 0.0,
            "integer": 0.5 if number is not None and number.denominator == 1 else 0.0,
            "correct": 2.0 if correct else 0.0,
        }
        return Score(
            components,
            correct,
            partial=float(correct),
            formatted=number is not None and answer is not None and answer.well_tagged,
            parsed=None if number is None else str(number),
        )


def xml_count(text: str) -> float:
    """.125 for each tag that stands once on a line of its own, less .001 for each character that follows the
    last one: once for the opening and once for the closing answer tag."""
    found = [text.count(tag) == 1 for tag in TAG_LINES]
    trailing = min(len(text.rpartition(TAG_LINES[-1])[2].lstrip("\n")), MOST_TRAILING) if found[3] else 0
    return 0.125 * sum(found) - 0.001 * trailing * (found[2] + found[3])


def in_tags(text: str) -> bool:
    """Reasoning and answer, each between its tags, in this order from the beginning on."""
    middle = re.search(r"</reasoning>\s*<answer>", text)
    return text.startswith("<reasoning>") and middle is not None and text.find(CLOSING, middle.end()) >= 0


def in_tag_lines(text: str) -> bool:
    """As ``in_tags``, with every tag on a line of its own and nothing after the last."""
    body = text.removesuffix("\n")
    middle = text.find(f"\n</reasoning>\n{OPENING}\n")
    return text.startswith("<reasoning>\n") and middle >= 0 and body.endswith(f"\n{CLOSING}")


def _gold(answer: object) -> Fraction | None:
    return read_number(str(answer).rpartition("####")[2])


def _stated(text: str) -> Answer | None:
    found = [match.group(1).split(". ")[0] for match in STATED.finditer(text[-5000:])]
    return Answer(found[-1], well_tagged=False, boxed=True) if found else None
