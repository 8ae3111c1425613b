"""FSDP2 over two processes on the CPU: the same training as one process, up to rounding."""

import os

import pytest
import torch
import torch.distributed as dist

from d1ray import checkpoint, checkpoint_writer
from d1ray.config import SFTConfig
from d1ray.demonstrations import Demonstrations, Phase
from d1ray.diffusion import MaskedDiffusionLoss
from d1ray.masked_training import training_step, validation_loss
from d1ray.models import load_model, save_model
from d1ray.models.lora import adapter_tensors, add_lora, unadapted
from d1ray.models.sharding import gathered, is_sharded, shard, unsharded
from d1ray.models.weights import live_tensors
from d1ray.recipe import load_config
from d1ray.rl.optimizer import adamw

STEPS = 3
SETTINGS = {
    "whole weights": {},
    "layout": {"eos_padding": 4, "packing": True, "micro_batch_tokens": 60},
    "adapter": {"lora": {"r": 4, "alpha": 8}},
    "bf16 adapter": {"lora": {"r": 4, "alpha": 8}, "precision": "bf16", "gradient_checkpointing": True},
}
RESUMED = ("layout", "adapter")


def fill(targets, tensors):
    with torch.no_grad():
        for name, tensor in tensors:
            targets[name].copy_(tensor)


def phase_of(sft):
    config = load_config("countdown-tiny", ["sft=null"])
    optimizer = {"learning_rate": 1e-3, "max_grad_norm": 0.5}
    return config, Phase(
        "sft", 1000, SFTConfig.model_validate({"batch_size": 5, "steps": 4, "optimizer": optimizer, **sft})
    )


def trained(folder, tokenizer, sft, sharded, resume=None, steps=range(STEPS), save_to=None):
    """Losses, the whole model after the steps, and the optimiser's whole state."""
    config, phase = phase_of(sft)
    bf16 = phase.config.precision == "bf16"
    model = load_model(folder, torch.bfloat16 if bf16 else torch.float32)
    if phase.config.lora:
        add_lora(model, phase.config.lora)
    if resume:
        fill(live_tensors(model), checkpoint.read_model(resume))
    model.gradient_checkpointing = phase.config.gradient_checkpointing
    loss = MaskedDiffusionLoss(model)
    if sharded:
        shard(loss, model, torch.device("cpu"))
        assert is_sharded(model)
    optimizer = adamw(model, phase.config.optimizer)
    if resume:
        checkpoint.restore_optimizer(optimizer, checkpoint.read(resume, "optimizer"))
    demonstrations = Demonstrations(config, phase, tokenizer, model.config.eos_token_id)
    rows = [training_step(loss, model, optimizer, demonstrations, step) for step in steps]
    held_out = validation_loss(loss, model, demonstrations.validation(3), phase.config)
    keeps = not sharded or dist.get_rank() == 0
    state = checkpoint.optimizer_tensors(optimizer)
    if save_to:
        checkpoint_writer.save(save_to, steps.stop, model, tokenizer, {"optimizer": state}, {}, 1, folder)
    whole = unsharded(model, phase.config.lora, keeps) if sharded else model
    return {
        "losses": [row["loss"] for row in rows] + [held_out],
        "norms": [row["grad_norm"] for row in rows],
        "model": whole.state_dict() if keeps else None,
        "merged": unadapted(whole).state_dict() if keeps else None,
        "optimizer": gathered(state, keeps),
    }


def rank_main(rank, world, port, folder, tokenizer, out):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        for name, sft in SETTINGS.items():
            found = trained(folder, tokenizer, sft, sharded=True)
            if rank == 0:
                torch.save(found, out / f"{name}.pt")
        for name in RESUMED:
            trained(folder, tokenizer, SETTINGS[name], True, None, range(2), out / f"{name} of two")
            for writers in ("one", "two"):
                saved = checkpoint.folder_of(out / f"{name} of {writers}", 2)
                rest = trained(folder, tokenizer, SETTINGS[name], True, saved, range(2, STEPS))
                if rank == 0:
                    torch.save(rest, out / f"{name} of {writers}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    from d1ray.config import ArchitectureConfig
    from d1ray.recipe_model import make_model

    path = tmp_path_factory.mktemp("sharding") / "model"
    make_model(ArchitectureConfig(d_model=32, n_layers=2, mlp_hidden_size=48), 0, path)
    model = load_model(path)
    save_model(model, path, tokenizer)
    return path


@pytest.fixture(scope="module")
def two_ranks(folder, tokenizer, tmp_path_factory, start_ranks):
    out = tmp_path_factory.mktemp("out")
    for name in RESUMED:
        trained(folder, tokenizer, SETTINGS[name], False, None, range(2), out / f"{name} of one")
    start_ranks(rank_main, 2, folder, tokenizer, out)
    return {file.stem: torch.load(file) for file in out.glob("*.pt")} | {"out": out}


@pytest.mark.parametrize("name", SETTINGS)
def test_two_sharded_ranks_train_as_one_process(two_ranks, folder, tokenizer, name):
    expected, found = trained(folder, tokenizer, SETTINGS[name], sharded=False), two_ranks[name]
    close = 1e-2 if SETTINGS[name].get("precision") else 1e-5
    assert found["losses"] == pytest.approx(expected["losses"], rel=close)
    assert found["norms"] == pytest.approx(expected["norms"], rel=close)
    assert found["model"].keys() == expected["model"].keys()
    for name, tensor in expected["model"].items():
        assert found["model"][name].dtype == tensor.dtype
        torch.testing.assert_close(found["model"][name], tensor, rtol=0, atol=close)
    assert found["merged"].keys() == expected["merged"].keys()
    for key, tensor in expected["optimizer"].items():
        assert found["optimizer"][key].shape == tensor.shape


@pytest.mark.parametrize("name", RESUMED)
def test_a_sharded_run_goes_on_from_its_checkpoint_bit_identically(two_ranks, name):
    whole, resumed = two_ranks[name], two_ranks[f"{name} of two"]
    assert resumed["losses"] == whole["losses"][2:]
    assert all(torch.equal(resumed["model"][name], tensor) for name, tensor in whole["model"].items())


@pytest.mark.parametrize("name", RESUMED)
def test_two_ranks_go_on_from_a_checkpoint_of_one_and_one_from_that_of_two(
    two_ranks, folder, tokenizer, name
):
    saved = checkpoint.folder_of(two_ranks["out"] / f"{name} of two", 2)
    one = trained(folder, tokenizer, SETTINGS[name], False, saved, range(2, STEPS))
    whole = two_ranks[name]["losses"][2:]
    assert one["losses"] == pytest.approx(whole, abs=1e-5)
    assert two_ranks[f"{name} of one"]["losses"] == pytest.approx(whole, abs=1e-5)


def test_each_rank_writes_its_share_of_a_checkpoint(two_ranks):
    saved = checkpoint.folder_of(two_ranks["out"] / "layout of two", 2)
    model, optimizer = ([f.stat().st_size for f in saved.glob(g)] for g in ("model/model-*", "optimizer-*"))
    assert len(model) == len(optimizer) == 2
    for sizes in (model, optimizer):
        assert max(sizes) < 1.3 * min(sizes)
    assert load_model(saved / "model").state_dict().keys() == two_ranks["layout"]["model"].keys()


def test_only_adapters_have_optimiser_state_and_gradients(two_ranks, folder, tokenizer):
    found = two_ranks["bf16 adapter"]
    model = load_model(folder, torch.bfloat16)
    add_lora(model, phase_of(SETTINGS["bf16 adapter"])[1].config.lora)
    assert len({key.split(".")[0] for key in found["optimizer"]}) == len(adapter_tensors(model))
    for name, tensor in load_model(folder, torch.bfloat16).state_dict().items():
        held = found["model"].get(name, found["model"].get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(held, tensor)
