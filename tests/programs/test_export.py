"""`d1ray export`: what is written is the policy, whole or not at all."""

import json

import pytest
import torch

from d1ray.config.errors import ModelError
from d1ray.config.lora import LoRAConfig
from d1ray.evaluation.config import model_folder
from d1ray.models.character_tokenizer import character_tokenizer
from d1ray.models.initialise import initialise
from d1ray.models.llada import LLaDA
from d1ray.models.llada_config import LLaDAConfig
from d1ray.models.load import load_model
from d1ray.models.lora import add_lora
from d1ray.models.save import save_model
from d1ray.models.tokenizer import load_tokenizer
from d1ray.programs.export import export
from d1ray.run import checkpoint_writer

TOKENIZER = character_tokenizer()
IDS = torch.arange(12)[None] % len(TOKENIZER)


def tiny():
    config = LLaDAConfig(
        d_model=16,
        n_layers=2,
        n_heads=2,
        mlp_hidden_size=24,
        vocab_size=len(TOKENIZER),
        max_sequence_length=32,
        mask_token_id=TOKENIZER.mask_token_id,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    return initialise(LLaDA(config), 0)


@pytest.fixture
def adapted(tmp_path):
    """(a checkpoint with an adapter, the logits of its policy)."""
    save_model(tiny(), tmp_path / "base", TOKENIZER)
    model = load_model(tmp_path / "base")
    add_lora(model, LoRAConfig(r=2), 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    folder = checkpoint_writer.save(tmp_path / "run", 3, model, TOKENIZER, {}, {}, 1, tmp_path / "base")
    with torch.no_grad():
        return folder, model(IDS)


def test_a_merged_export_is_the_policy(adapted, tmp_path):
    folder, logits = adapted
    export(folder, tmp_path / "out")
    with torch.no_grad():
        merged, plain = load_model(tmp_path / "out")(IDS), load_model(tmp_path / "base")(IDS)
    torch.testing.assert_close(merged, logits, rtol=0, atol=1e-5)
    assert (plain - logits).abs().max() > 1e-3  # the adapter does something
    assert load_tokenizer(tmp_path / "out").get_vocab() == TOKENIZER.get_vocab()
    assert not list(tmp_path.glob(".*"))


def test_a_peft_export_is_the_adapter_and_names_the_base_it_is_told(adapted, tmp_path):
    folder, logits = adapted
    export(folder, tmp_path / "out", "peft")
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "out")(IDS), logits, rtol=0, atol=1e-5)
    export(folder, tmp_path / "named", "peft", base="GSAI-ML/LLaDA-8B-Instruct")
    config = json.loads((tmp_path / "named" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "GSAI-ML/LLaDA-8B-Instruct"


def test_the_type_of_the_weights_can_be_chosen(adapted, tmp_path):
    export(adapted[0], tmp_path / "out", dtype="bf16")
    assert next(load_model(tmp_path / "out", dtype=None).parameters()).dtype == torch.bfloat16
    export(tmp_path / "out", tmp_path / "again")
    assert next(load_model(tmp_path / "again", dtype=None).parameters()).dtype == torch.bfloat16


def test_what_cannot_be_exported_says_why_and_leaves_nothing(adapted, tmp_path):
    folder, _ = adapted
    with pytest.raises(ModelError, match="is a whole model, not an adapter"):
        export(tmp_path / "base", tmp_path / "out", "peft")
    with pytest.raises(ModelError, match="--dtype belongs to --format merged"):
        export(folder, tmp_path / "out", "peft", dtype="bf16")
    with pytest.raises(ModelError, match="is there already"):
        export(folder, tmp_path / "base")
    with pytest.raises(ModelError, match="no model folder, checkpoint, run folder or hub id"):
        export(tmp_path / "nowhere", tmp_path / "out")
    (folder / "model" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="does not match its manifest"):
        export(folder, tmp_path / "out")
    for place in (folder, folder / "model"):  # as `evaluate` and `serve` ask
        with pytest.raises(ModelError, match="does not match its manifest"):
            model_folder(place)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
