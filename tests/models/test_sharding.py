"""FSDP2 over two processes on the CPU: the same training as one process, up to rounding."""

import os

import pytest
import torch
import torch.distributed as dist

from d1ray.config.recipe import load_config
from d1ray.config.sft import SFTConfig
from d1ray.diffusion.masked_loss import MaskedDiffusionLoss
from d1ray.models.load import load_model
from d1ray.models.lora import adapter_tensors, add_lora, unadapted
from d1ray.models.save import save_model
from d1ray.models.sharding import gathered, is_sharded, shard, unsharded
from d1ray.models.weights import live_tensors
from d1ray.rl.optimizer import adamw
from d1ray.run import checkpoint, checkpoint_tensors, checkpoint_writer
from d1ray.sft.demonstrations import Demonstrations, Phase
from d1ray.sft.masked_training import training_step, validation_loss
from d1ray.sft.model import frozen_dtype

STEPS = 3
SETTINGS = {
    "whole weights": {},
    "layout": {"eos_padding": 4, "packing": True, "micro_batch_tokens": 60},
    "adapter": {"lora": {"r": 4, "alpha": 8}},
    "bf16 adapter": {"lora": {"r": 4, "alpha": 8}, "precision": "bf16", "gradient_checkpointing": True},
    "bf16": {"precision": "bf16", "eos_padding": 4, "micro_batch_tokens": 60},
}
OFFLOADED = ("layout", "bf16 adapter")
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


def trained(folder, tokenizer, sft, sharded, resume=None, steps=range(STEPS), save_to=None, offload=False):
    """Losses, the whole model after the steps, the optimiser's whole state, and the type of a block's weights
    while it computes."""
    config, phase = phase_of(sft)
    bf16 = phase.config.precision == "bf16"
    model = load_model(folder, frozen_dtype(phase.config))
    if phase.config.lora:
        add_lora(model, phase.config.lora)
    if resume:
        fill(live_tensors(model), checkpoint_tensors.read_model(resume))
    model.gradient_checkpointing = phase.config.gradient_checkpointing
    loss = MaskedDiffusionLoss(model)
    if sharded:
        shard(loss, model, torch.device("cpu"), bf16, offload)
        assert is_sharded(model)
    computed = set()
    norm = next(iter(model.blocks())).attn_norm
    norm.register_forward_pre_hook(lambda module, inputs: computed.add(module.weight.dtype))
    optimizer = adamw(model, phase.config.optimizer)
    if resume:
        checkpoint_tensors.restore_optimizer(optimizer, checkpoint_tensors.read(resume, "optimizer"))
    demonstrations = Demonstrations(config, phase, tokenizer, model.config.eos_token_id)
    rows = [training_step(loss, model, optimizer, demonstrations, step) for step in steps]
    held_out = validation_loss(loss, model, demonstrations.validation(3), phase.config)
    keeps = not sharded or dist.get_rank() == 0
    state = checkpoint_tensors.optimizer_tensors(optimizer)
    if save_to:
        checkpoint_writer.save(save_to, steps.stop, model, tokenizer, {"optimizer": state}, {}, 1, folder)
    whole = unsharded(model, phase.config.lora, keeps) if sharded else model
    return {
        "losses": [row["loss"] for row in rows] + [held_out],
        "norms": [row["grad_norm"] for row in rows],
        "model": whole.state_dict() if keeps else None,
        "merged": unadapted(whole).state_dict() if keeps else None,
        "optimizer": gathered(state, keeps),
        "computed": computed,
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
            if name in OFFLOADED:
                found = trained(folder, tokenizer, sft, sharded=True, offload=True)
                if rank == 0:
                    torch.save(found, out / f"{name}, offloaded.pt")
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
    from d1ray.config.model import ArchitectureConfig
    from d1ray.models.make import make_model

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


@pytest.mark.parametrize("name", OFFLOADED)
def test_offloaded_ranks_train_the_same(two_ranks, name):
    kept, offloaded = two_ranks[name], two_ranks[f"{name}, offloaded"]
    assert (offloaded["losses"], offloaded["norms"]) == (kept["losses"], kept["norms"])
    for part in ("model", "merged", "optimizer"):
        assert all(torch.equal(offloaded[part][key], tensor) for key, tensor in kept[part].items())


def test_blocks_are_gathered_in_the_type_of_the_computation(two_ranks):
    found = {name: results["computed"] for name, results in two_ranks.items() if name != "out"}
    assert found["whole weights"] == found["layout, offloaded"] == {torch.float32}
    assert found["bf16"] == found["bf16 adapter, offloaded"] == {torch.bfloat16}
    assert {tensor.dtype for tensor in two_ranks["bf16"]["model"].values()} == {torch.float32}


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
