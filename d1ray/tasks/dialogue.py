"""Any prompt/response data, for SFT: a user's turn and the assistant's answer to it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from d1ray.tasks.answers import MAX_ANSWER
from d1ray.tasks.task import DemonstrationStyle, Example, Score, Task

if TYPE_CHECKING:
    import numpy as np


class Dialogue(Task):
    """Read from ``prompt`` and ``response`` columns, or from ``messages`` of one exchange.

    A system message is put before the user's turn. A completion is judged by whether it is the response: most
    data of this kind has no other criterion.
    """

    placeholders: ClassVar[tuple[str, ...]] = ("prompt",)
    rewards: ClassVar[tuple[str, ...]] = ("match",)

    name: Literal["dialogue"] = "dialogue"
    template: str = "{prompt}"

    def example(self, row: Mapping[str, Any]) -> Example:
        prompt, response = (
            _exchange(row["messages"]) if "messages" in row else (row["prompt"], row["response"])
        )
        for name, text in (("prompt", prompt), ("response", response)):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{name} must be text, found {text!r:.60}")
        fields = {"prompt": prompt, "response": response}
        return Example(self.name, prompt, self.prompt(prompt=prompt), fields, prefill=self.prefill)

    def demonstration(self, example: Example, style: DemonstrationStyle, rng: "np.random.Generator") -> str:
        """The response; corrupted, its words in another order."""
        response = str(example.fields["response"])
        if style == "corrupted":
            return " ".join(rng.permutation(response.split()))
        return response

    def judge(self, example: Example, text: str) -> Score:
        answer = " ".join(text.split())
        correct = answer == " ".join(str(example.fields["response"]).split())
        return Score(
            {"match": float(correct)},
            correct,
            partial=float(correct),
            formatted=correct,
            parsed=answer[:MAX_ANSWER] or None,
        )


def _exchange(messages: object) -> tuple[str, str]:
    """The prompt and the response of ``[system,] user, assistant``."""
    turns = messages if isinstance(messages, list) else []
    roles = [turn.get("role") if isinstance(turn, Mapping) else None for turn in turns]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        found = ", ".join(map(str, roles)) or "none"
        raise ValueError(f"messages must be one exchange ([system,] user, assistant), found {found}")
    contents = [turn.get("content") for turn in turns]
    for role, content in zip(roles, contents, strict=True):
        if not isinstance(content, str):
            raise ValueError(f"the content of {role} must be text, found {content!r:.60}")
    return "\n".join(contents[:-1]), contents[-1]
