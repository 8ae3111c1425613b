"""s1K (arXiv 2501.19393): 1,000 hard questions with long reasoning traces, the data of d1's SFT."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from d1ray.tasks.answers import boxes, tagged
from d1ray.tasks.math import Math
from d1ray.tasks.task import DemonstrationStyle, Example, Split, split_by_hash

if TYPE_CHECKING:
    import numpy as np

TEMPLATE = """\
{problem}

Think step by step between <reasoning> and </reasoning>. Then give the answer between <answer> and
</answer>."""

TRACES = ("deepseek_thinking_trajectory", "gemini_thinking_trajectory", "thinking_trajectories")
ATTEMPTS = ("deepseek_attempt", "gemini_attempt", "attempt")


class S1K(Math):
    """s1K and s1K-1.1: ``question``, ``solution``, a thinking trajectory and the attempt that follows it.

    A demonstration is the trajectory between reasoning tags and the attempt between answer tags (d1, Section
    3.1). Completions are judged as those of MATH are.
    """

    hub: ClassVar[tuple[str, str | None] | None] = ("simplescaling/s1K", None)

    name: Literal["s1k"] = "s1k"  # type: ignore[assignment]
    template: str = TEMPLATE

    def example(self, row: Mapping[str, Any]) -> Example:
        """Reads s1K's ``thinking_trajectories`` and ``attempt``, or s1K-1.1's ``deepseek_*`` or ``gemini_*``.

        All may be missing where completions are only scored.
        """
        question, solution = row["question"], row["solution"]
        trace, attempt = _first(row, TRACES), _first(row, ATTEMPTS)
        found = {"question": question, "solution": solution, "trajectory": trace, "attempt": attempt}
        for name, text in found.items():
            if not isinstance(text, str):
                raise ValueError(f"{name} must be text, found {text!r:.60}")
        fields = {
            "question": question,
            "solution": solution,
            "answer": (boxes(solution) or [solution])[-1],
            "thinking_trajectories": [trace],
            "attempt": attempt,
        }
        return Example(self.name, question, self.prompt(problem=question), fields, prefill=self.prefill)

    def split_of(self, key: str) -> Split:
        """96 % train, 2 % validation and 2 % test, by hash: the rows are few, and tests are on other data."""
        return split_by_hash(key, 50)

    def demonstration(self, example: Example, style: DemonstrationStyle, rng: "np.random.Generator") -> str:
        """The trajectory and the attempt; corrupted, either without the tags or with another number."""
        trace, attempt = example.fields["thinking_trajectories"][0].strip(), example.fields["attempt"].strip()
        if not attempt:
            raise ValueError("the row has no attempt to demonstrate")
        if style == "corrupted":
            if rng.random() < 0.5:
                return f"{trace}\n{attempt}"
            attempt = str(int(rng.integers(1000)))
        return f"<reasoning>\n{trace}\n</reasoning>\n" + tagged(f"\n{attempt}\n")


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of the columns that is there and holds something; "" if none does."""
    found = next((row[name] for name in names if row.get(name)), "")
    return found[0] if isinstance(found, list) else found
