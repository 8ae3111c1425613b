"""Text to token ids and back: chat prompts, EOS-padded completions, completion text."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, limit: int, prefill: str = ""
) -> list[int]:
    """Token ids of a user turn in the model's chat template, up to the ``prefill`` of the assistant's turn.

    Raises:
        ValueError: more than ``limit`` tokens.
    """
    ids = _prompt_ids(tokenizer, prompt, prefill)
    if len(ids) > limit:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, more than data.max_prompt_length={limit}; raise it, or leave "
            f"such rows out with data.overlong_prompts=drop"
        )
    return ids


def prompt_fits(tokenizer: PreTrainedTokenizerBase, prompt: str, limit: int, prefill: str = "") -> bool:
    """Whether ``encode_prompt`` needs no more than ``limit`` tokens."""
    return len(_prompt_ids(tokenizer, prompt, prefill)) <= limit


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, prefill: str) -> list[int]:
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    ids = [*ids, *tokenizer(prefill, add_special_tokens=False).input_ids] if prefill else ids
    return [int(i) for i in ids]


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str, length: int, eos_id: int) -> list[int]:
    """Token ids of a completion, padded with EOS to exactly ``length``.

    Raises:
        ValueError: the text alone needs more than ``length`` tokens.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) > length:
        raise ValueError(
            f"the completion has {len(ids)} tokens, more than data.max_completion_length={length}"
        )
    return ids + [eos_id] * (length - len(ids))


def decode_completion(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], eos_id: int) -> str:
    """The text of a completion up to its first EOS."""
    tokens = list(ids)
    end = tokens.index(eos_id) if eos_id in tokens else len(tokens)
    text: str = tokenizer.decode(tokens[:end])
    return text
