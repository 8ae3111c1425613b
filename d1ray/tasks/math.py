"""MATH (Hendrycks et al. 2021): competition problems whose answer is an expression; MATH-500 is its test."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from d1ray.tasks.answers import boxes, final_answer, find_answer, tagged
from d1ray.tasks.equivalence import canonical, equivalent
from d1ray.tasks.task import DemonstrationStyle, Example, Score, Task

if TYPE_CHECKING:
    import numpy as np

TEMPLATE = """\
{problem}

Think step by step between <reasoning> and </reasoning>. Then give the final answer as \\boxed{} between
<answer> and </answer>."""


class Math(Task):
    """MATH, read from ``problem`` and ``answer`` columns, or ``solution`` whose last box is the answer."""

    placeholders: ClassVar[tuple[str, ...]] = ("problem",)
    rewards: ClassVar[tuple[str, ...]] = ("correct", "format")
    hub: ClassVar[tuple[str, str | None] | None] = ("nlile/hendrycks-MATH-benchmark", None)

    name: Literal["math"] = "math"
    template: str = TEMPLATE

    def example(self, row: Mapping[str, Any]) -> Example:
        """Reads ``answer`` (or ``solution``); ``problem`` may be missing where completions are only scored.

        MATH's training file holds a problem with an empty answer: nothing equals it.
        """
        problem = row.get("problem", "")
        if not isinstance(problem, str):
            raise ValueError(f"problem must be text, found {problem!r:.60}")
        solution = row.get("solution") if isinstance(row.get("solution"), str) else ""
        answer = row["answer"] if "answer" in row or not solution else (boxes(solution) or [""])[-1]
        answer = "" if answer is None else answer
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise ValueError(f"answer must be an expression, found {answer!r:.60}")
        fields = {"problem": problem, "answer": str(answer), "solution": solution}
        return Example(
            self.name, problem or str(answer), self.prompt(problem=problem), fields, prefill=self.prefill
        )

    def demonstration(self, example: Example, style: DemonstrationStyle, rng: "np.random.Generator") -> str:
        """The solution and the boxed answer; corrupted, either without the tags or with another number."""
        answer, solution = example.fields["answer"], example.fields["solution"] or "The answer follows."
        if style == "corrupted":
            if rng.random() < 0.5:
                return f"{solution}\n{answer}"
            answer = str(int(rng.integers(1000)))
        return f"<reasoning>\n{solution}\n</reasoning>\n" + tagged(f"\n\\boxed{{{answer}}}\n")

    def vote(self, parsed: str) -> str:
        return canonical(parsed)

    def prepare(self) -> None:
        equivalent(r"\sqrt{2}", "2")

    def judge(self, example: Example, text: str) -> Score:
        """2 for a right answer; 1 for a box between answer tags, .5 for one elsewhere."""
        answer = final_answer(text)
        correct = answer is not None and equivalent(answer.text, example.fields["answer"])
        inside = find_answer(text)
        boxed_inside = inside is not None and any(box.strip() for box in boxes(inside.text))
        boxed = boxed_inside or any(box.strip() for box in boxes(text))
        return Score(
            {"correct": 2.0 if correct else 0.0, "format": 1.0 if boxed_inside else 0.5 if boxed else 0.0},
            correct,
            partial=float(correct),
            formatted=boxed_inside,
            parsed=answer.text if answer else None,
        )
