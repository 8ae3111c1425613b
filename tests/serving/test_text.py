"""Text is sent once it is certain, and ends where it should."""

import pytest

from d1ray.serving.text import Text, end_tokens


class Bytes:
    """A tokenizer whose tokens are bytes: characters may be split between tokens."""

    def __init__(self) -> None:
        self.added_tokens_decoder = {300: "<|eot_id|>", 301: "<|endoftext|>", 302: "<|mdm_mask|>"}

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


def pieces(written: str, stop: tuple[str, ...] = (), every: int = 1) -> tuple[list[str], Text]:
    """What becomes final as ``every`` more bytes are committed each time."""
    text, ids = Text(Bytes(), stop), list(written.encode())
    sent = [text.update(ids[:end], complete=False) for end in range(every, len(ids) + 1, every)]
    return [*sent, text.update(ids, complete=True)], text


@pytest.mark.parametrize("every", [1, 2, 5])
def test_pieces_add_up_to_the_text_and_characters_come_whole(every):
    written = "Grüße, 世界 🙂!"
    sent, _ = pieces(written, every=every)
    assert "".join(sent) == written
    assert not any("�" in piece for piece in sent)


def test_text_without_stop_strings_comes_at_once():
    assert pieces("abc")[0] == ["a", "b", "c", ""]


def test_a_stop_string_ends_the_text_and_is_no_part_of_it():
    sent, text = pieces("one STOP two", ("STOP",))
    assert "".join(sent) == "one "
    assert text.stopped
    assert text.update(list(b"one STOP two and more"), complete=False) == ""


def test_what_may_become_a_stop_string_is_held_back_until_it_is_certain():
    sent, text = pieces("a\n\nb\nc", ("\n\n\n", "b\nd"))
    assert sent[1:5] == ["", "", "\n\n", ""]  # "\n\n" might go on, "b" too
    assert "".join(sent) == "a\n\nb\nc"
    assert not text.stopped


def test_the_first_of_several_stop_strings_counts():
    assert "".join(pieces("1 END 2 STOP", ("STOP", "END"), every=12)[0]) == "1 "


def test_a_broken_character_at_the_end_of_all_is_sent_as_it_is():
    text = Text(Bytes())
    assert text.update([0x41, 0xE4], complete=False) == "A"
    assert text.update([0x41, 0xE4], complete=True) == "�"


def test_ends_of_turns_end_a_completion():
    assert end_tokens(Bytes(), 7) == {7, 300, 301}
