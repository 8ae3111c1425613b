"""What SFT starts from: a model, a PEFT folder or a checkpoint, with or without an adapter of its own."""

import shutil

import numpy as np
import pytest
import torch

from d1ray.config.lora import LoRAConfig
from d1ray.config.optimizer import OptimizerConfig
from d1ray.models.adapter_folder import save_adapter
from d1ray.models.load import load_model
from d1ray.models.lora import adapter_tensors, add_lora, has_lora, unadapted
from d1ray.models.save import save_model
from d1ray.rl.optimizer import adamw, optimizer_step
from d1ray.run import checkpoint_tensors, checkpoint_writer
from d1ray.sft.model import start_model

IDS = torch.tensor([[4, 11, 5, 2, 1, 1]])
LORA = LoRAConfig(r=3, alpha=6)
CONFIG = OptimizerConfig(learning_rate=1e-2)


@pytest.fixture
def start(tmp_path, make_text_model, tokenizer):
    save_model(make_text_model(), tmp_path / "start", tokenizer)
    return tmp_path / "start"


@pytest.fixture
def adapted(make_text_model):
    """The start model with a trained adapter."""
    model = add_lora(make_text_model(), LORA)
    draw = np.random.default_rng(0)
    for tensor in adapter_tensors(model).values():
        tensor.copy_(torch.from_numpy(draw.standard_normal(tuple(tensor.shape)).astype(np.float32)) * 0.3)
    return model


@pytest.fixture
def peft(tmp_path, start, adapted, tokenizer):
    save_adapter(adapted, tmp_path / "peft", base=str(start))
    return tmp_path / "peft"


def train(model, optimizer, updates):
    for update in updates:
        ids = torch.tensor([[update % 20, 3, 5, 1]])
        model(ids).float().log_softmax(-1)[0, :, update % 7].sum().neg().backward()
        optimizer_step(model, optimizer, 1e-2, CONFIG)


def test_a_model_folder_is_trained_as_a_whole(start, make_text_model):
    model, base = start_model(start, None)
    assert base == start
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(IDS), make_text_model()(IDS))


def test_a_peft_folder_is_merged_and_all_its_weights_are_trained(peft, adapted):
    model, base = start_model(peft, None)
    assert base == peft
    assert not has_lora(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(IDS), unadapted(adapted)(IDS))


def test_a_peft_folder_gets_the_adapter_that_is_asked_for(peft, adapted):
    model, _ = start_model(peft, None)
    add_lora(model, LoRAConfig(r=5, alpha=10))  # as train_worker does for sft.lora
    assert {t.shape[0] for n, t in adapter_tensors(model).items() if n.endswith("lora_A.weight")} == {5}
    assert torch.equal(model(IDS), unadapted(adapted)(IDS))


def test_a_checkpoint_of_all_weights_is_gone_on_with(tmp_path, start, make_text_model, tokenizer):
    folder = checkpoint_writer.save(tmp_path, 4, make_text_model(3), tokenizer, {}, {}, 1, start)
    model, base = start_model(start, folder)
    assert base == folder / "model"
    assert torch.equal(model(IDS), make_text_model(3)(IDS))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("source", ["start", "peft"])
def test_an_interrupted_adapter_goes_on_as_if_it_had_not_been(tmp_path, request, tokenizer, source):
    folder = request.getfixturevalue(source)

    def begin():
        model, base = start_model(folder, None)
        return add_lora(model, LORA, seed=1), base

    whole, _ = begin()
    train(whole, adamw(whole, CONFIG), range(6))

    first, base = begin()
    optimizer = adamw(first, CONFIG)
    train(first, optimizer, range(3))
    tensors = {"optimizer": checkpoint_tensors.optimizer_tensors(optimizer)}
    saved = checkpoint_writer.save(tmp_path / "checkpoints", 3, first, tokenizer, tensors, {}, 1, base)

    second, base = start_model(folder, saved)
    assert base == folder
    trained = {name for name, parameter in second.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in whole.named_parameters() if parameter.requires_grad}
    optimizer = adamw(second, CONFIG)
    checkpoint_tensors.restore_optimizer(optimizer, checkpoint_tensors.load_tensors(saved, "optimizer"))
    train(second, optimizer, range(3, 6))
    assert all(torch.equal(second.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


def test_a_run_that_was_moved_goes_on_with_its_adapter(tmp_path, start, adapted, tokenizer):
    run = tmp_path / "run"
    (run / "models").mkdir(parents=True)
    shutil.move(start, run / "models" / "base")
    checkpoint_writer.save(run / "checkpoints", 3, adapted, tokenizer, {}, {}, 1, run / "models" / "base")
    moved = run.rename(tmp_path / "moved")
    model, base = start_model(moved / "models" / "base", moved / "checkpoints" / "step-00003")
    assert base == moved / "models" / "base"
    assert torch.equal(model(IDS), adapted(IDS))
    saved = checkpoint_writer.save(moved / "checkpoints", 5, model, tokenizer, {}, {}, 1, base)
    assert torch.equal(load_model(saved / "model")(IDS), unadapted(adapted)(IDS))
