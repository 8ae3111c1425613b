"""Tokenizers: the character tokenizer, the same after a save; Dream's; and the mask token of any."""

import json
import shutil
import string
from pathlib import Path

import pytest

from d1ray.config.errors import ModelError
from d1ray.models.chat import decode_completion, encode_completion, encode_prompt
from d1ray.models.save import save_model
from d1ray.models.tokenizer import load_tokenizer, save_tokenizer

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


@pytest.fixture
def folder(tmp_path, make_text_model, tokenizer):
    save_model(make_text_model(), tmp_path / "model", tokenizer)
    return tmp_path / "model"


def edit(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))


def test_a_saved_tokenizer_is_written_for_older_readers_too(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|system|>", "<|user|>", "<|assistant|>"]
    assert "message" in config["chat_template"]
    assert {"auto_map", "extra_special_tokens", "is_local", "backend"}.isdisjoint(config)
    assert sorted(path.name for path in folder.iterdir() if "token" in path.name) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_without_a_mask_token_of_its_own_a_tokenizer_gets_the_configs(folder, tokenizer):
    edit(folder / "tokenizer_config.json", mask_token="absent")
    loaded = load_tokenizer(folder)
    assert (loaded.mask_token, loaded.mask_token_id) == ("<|mdm_mask|>", tokenizer.mask_token_id)
    edit(folder / "config.json", mask_token_id=tokenizer.unk_token_id)
    assert load_tokenizer(folder).mask_token == "<|unknown|>"


def test_a_tokenizer_needs_no_config_beside_it_if_it_has_a_mask_token(folder, tokenizer):
    (folder / "config.json").unlink()
    assert load_tokenizer(folder).mask_token_id == tokenizer.mask_token_id


@pytest.mark.parametrize("config", ["absent", "without the id"])
def test_where_nothing_names_a_mask_token_the_error_says_what_to_set(folder, config):
    edit(folder / "tokenizer_config.json", mask_token="absent")
    if config == "absent":
        (folder / "config.json").unlink()
    else:
        edit(folder / "config.json", mask_token_id="absent")
    with pytest.raises(ModelError, match=r"set mask_token_id in config\.json or mask_token in tok"):
        load_tokenizer(folder)


@pytest.mark.parametrize("number", [106, 10**6, -1])
@pytest.mark.parametrize("mask", ["absent", "<|mdm_mask|>"])
def test_a_mask_token_outside_the_vocabulary_is_refused(folder, mask, number):
    edit(folder / "tokenizer_config.json", mask_token=mask)
    edit(folder / "config.json", mask_token_id=number)
    with pytest.raises(ModelError, match=f"mask_token_id {number} is outside .* vocabulary of 106"):
        load_tokenizer(folder)


def test_a_mask_token_that_is_no_number_is_refused(folder):
    edit(folder / "config.json", mask_token_id="<|mdm_mask|>")
    with pytest.raises(ModelError, match=r"mask_token_id is '<\|mdm_mask\|>'; expected an integer"):
        load_tokenizer(folder)


def test_a_tokenizer_and_a_config_that_disagree_about_the_mask_token_are_refused(folder, tokenizer):
    edit(folder / "config.json", mask_token_id=tokenizer.unk_token_id)
    with pytest.raises(ModelError, match=r"mask_token_id is 2 \('<\|unknown\|>'\), but .* is 1"):
        load_tokenizer(folder)


def test_a_folder_with_only_the_tokenizers_config_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"neither tokenizer\.json nor vocab\.json and merges\.txt"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", ""),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": '),
        ("tokenizer_config.json", ""),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_damaged_tokenizer_files_are_refused(folder, file, text):
    (folder / file).write_text(text)
    with pytest.raises(ModelError, match=r"the tokenizer cannot be read: .*; copy its files again"):
        load_tokenizer(folder)


@pytest.fixture(scope="module")
def dream_folder():
    folder = Path(__file__).parents[3] / "shared" / "models" / "dream-7b"
    if not folder.is_dir():
        pytest.skip(f"Dream-7B's tokenizer is not in {folder}")
    return folder


@pytest.fixture(scope="module")
def dream(dream_folder):
    return load_tokenizer(dream_folder)


def test_dreams_tokenizer_has_its_special_tokens(dream):
    assert (dream.mask_token, dream.mask_token_id) == ("<|mask|>", 151666)
    assert dream.eos_token_id == dream.pad_token_id == 151643
    assert len(dream) == 151667


def test_dreams_chat_template_is_rendered(dream):
    ids = encode_prompt(dream, "1+1?", limit=64)
    assert dream.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(151644) == 3  # <|im_start|>


def test_dreams_completions_survive_the_round_trip(dream):
    text = "<answer>3.14 ≈ π</answer>\n  twice"
    ids = encode_completion(dream, text, 40, dream.eos_token_id)
    assert decode_completion(dream, ids, dream.eos_token_id) == text


def test_dreams_tokenizer_runs_none_of_the_code_its_config_names(dream_folder, tmp_path):
    for name in ("tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(dream_folder / name, tmp_path)
    (tmp_path / "tokenization_dream.py").write_text("raise SystemExit('remote code ran')")
    assert load_tokenizer(tmp_path).mask_token_id == 151666


def test_dreams_tokenizer_is_saved_without_the_code_it_named(dream, tmp_path):
    save_tokenizer(dream, tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    text = "x <|mask|> ñ 12"
    loaded = load_tokenizer(tmp_path)
    assert loaded(text).input_ids == dream(text).input_ids
    assert loaded.mask_token_id == 151666
    assert loaded.chat_template == dream.chat_template
