"""Text: the part of a completion's text that will not change any more, as its tokens are committed."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from d1ray.tasks.answers import END


class Text:
    """The text of one completion.

    Args:
        stop: strings that end it, and are no part of it.

    Attributes:
        final: what is certain so far: never the beginning of a character or of a stop string that the next
            tokens may complete.
        stopped: whether a stop string has ended it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()):
        self.tokenizer, self.stop = tokenizer, stop
        self.final = ""
        self.stopped = False

    def update(self, ids: Sequence[int], complete: bool) -> str:
        """What has become final, now that the completion begins with ``ids``, or is ``complete``."""
        if self.stopped:
            return ""
        text: str = self.tokenizer.decode(list(ids))
        found = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        if found:
            text, self.stopped = text[: min(found)], True
        elif not complete:
            text = text[: len(text) - _unsure(text, self.stop)]
        # A tokenizer may see what it has decoded otherwise once more tokens follow; what is sent stays.
        new = text[len(self.final) :]
        self.final += new
        return new


def _unsure(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of ``text`` that further tokens may change or make part of a stop string."""
    unsure = len(text) - len(text.rstrip("�"))  # the beginning of a character of several bytes
    for string in stop:
        for length in range(min(len(string) - 1, len(text)), unsure, -1):
            if text.endswith(string[:length]):
                unsure = length
                break
    return unsure


def end_tokens(tokenizer: PreTrainedTokenizerBase, eos_token_id: int) -> frozenset[int]:
    """The tokens that end a completion: the model's EOS and the ends of turns that the tokenizer knows."""
    special = {str(token): int(i) for i, token in tokenizer.added_tokens_decoder.items()}
    return frozenset({eos_token_id, *(i for token, i in special.items() if END.fullmatch(token))})
