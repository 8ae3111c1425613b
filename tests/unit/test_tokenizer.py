"""The character tokenizer: every character one token, tags whole, the same after a save."""

import string

import pytest

from d1ray.errors import ModelError
from d1ray.models import decode_completion, encode_completion, encode_prompt, load_tokenizer, save_model

TEXTS = [
    "<reasoning>1+2 = 3\n</reasoning>\n<answer>3</answer>",
    "  two  spaces , and a full stop . It's n't",
    "a<b>c</answer",  # almost tags
    string.printable[:95],
    "",
]


@pytest.fixture
def loaded(tmp_path, make_text_model, tokenizer):
    save_model(make_text_model(), tmp_path / "model", tokenizer)
    return load_tokenizer(tmp_path / "model")


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_saved_tokenizer_encodes_and_decodes_as_before(tokenizer, loaded, text):
    ids = loaded(text, add_special_tokens=False).input_ids
    assert ids == tokenizer(text, add_special_tokens=False).input_ids
    assert loaded.decode(ids) == text


def test_the_vocabulary_is_the_special_tokens_the_tags_and_printable_ascii_with_newline(tokenizer):
    assert len(tokenizer) == 6 + 4 + 95 + 1
    assert sorted(tokenizer.get_vocab().values()) == list(range(106))


@pytest.mark.parametrize("tag", ["<reasoning>", "</reasoning>", "<answer>", "</answer>"])
def test_a_tag_is_one_token_wherever_it_stands(tokenizer, tag):
    ids = tokenizer(f"x{tag}1{tag}", add_special_tokens=False).input_ids
    assert len(ids) == 4
    assert tokenizer.convert_ids_to_tokens(ids[1]) == tokenizer.convert_ids_to_tokens(ids[3]) == tag


def test_every_character_is_one_token(tokenizer):
    text = "0 Ab\n{}~"
    assert tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids) == list(text)


def test_a_character_outside_the_vocabulary_is_unknown(tokenizer):
    ids = tokenizer("a√😀", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "<|unknown|>", "<|unknown|>"]


def test_the_special_tokens_have_their_roles(loaded):
    assert loaded.mask_token == "<|mdm_mask|>"
    assert loaded.eos_token == loaded.pad_token == "<|endoftext|>"
    assert len({loaded.mask_token_id, loaded.eos_token_id, loaded.unk_token_id}) == 3


def test_a_prompt_is_the_user_turn_up_to_where_the_assistant_begins(loaded):
    ids = encode_prompt(loaded, "12", limit=4)
    assert loaded.convert_ids_to_tokens(ids) == ["<|user|>", "1", "2", "<|assistant|>"]


def test_a_conversation_marks_every_turn(tokenizer):
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<|system|>s<|user|>u"


def test_a_prompt_over_the_limit_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"5 tokens, more than data\.max_prompt_length=4"):
        encode_prompt(tokenizer, "123", limit=4)


def test_a_completion_is_padded_with_eos(tokenizer):
    eos = tokenizer.eos_token_id
    ids = encode_completion(tokenizer, "<answer>7</answer>", 5, eos)
    assert ids[3:] == [eos, eos]
    assert tokenizer.convert_ids_to_tokens(ids[:3]) == ["<answer>", "7", "</answer>"]


def test_a_completion_that_does_not_fit_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"3 tokens, more than data\.max_completion_length=2"):
        encode_completion(tokenizer, "123", 2, tokenizer.eos_token_id)


def test_a_completion_is_decoded_up_to_its_first_eos(tokenizer):
    eos = tokenizer.eos_token_id
    one, two = tokenizer("12", add_special_tokens=False).input_ids
    assert decode_completion(tokenizer, [one, eos, two, eos], eos) == "1"
    assert decode_completion(tokenizer, [one, two], eos) == "12"
    assert decode_completion(tokenizer, [eos, two], eos) == ""


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)
