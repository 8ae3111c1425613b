"""Several ranks learn as one does: the same loss, gradient and update, whole or sharded, even or uneven."""

import os
from datetime import timedelta
from itertools import product

import numpy as np
import pytest
import torch
import torch.distributed as dist

from d1ray.config.kinds import load_algorithm
from d1ray.config.lora import LoRAConfig
from d1ray.config.optimizer import OptimizerConfig
from d1ray.config.rl import RLConfig
from d1ray.diffusion.estimators.estimator import Group
from d1ray.diffusion.likelihood import ViewLogps
from d1ray.models.load import load_model
from d1ray.models.lora import add_lora
from d1ray.models.save import save_model
from d1ray.models.sharding import shard, whole
from d1ray.rl.batch import Batch, up_to_first_eos
from d1ray.rl.learning import learn
from d1ray.rl.likelihoods import group_logps
from d1ray.rl.optimizer import adamw
from d1ray.rl.proximal import with_proximal
from d1ray.rl.update import accumulate_gradient

MASK, SEED, MU, GROUPS = 1, 5, 2, 5
ALGORITHMS = {"diffu_grpo": {}, "espo": {}, "coupled_grpo": {}}  # one view, views that mix, several views
TOKENS = (16384, 60, 1)  # everything at once, some groups, a row
CASES = [  # algorithm, tokens, whether an adapter is trained, whether an older policy sampled
    *product(ALGORITHMS, TOKENS, [False], [False]),
    ("diffu_grpo", 60, True, False),
    ("diffu_grpo", 60, False, True),
    ("espo", 1, False, True),
]
FEW = [  # more ranks, offloaded, and in bf16
    ("diffu_grpo", 60, False, False),
    ("espo", 60, False, False),
    ("diffu_grpo", 60, True, False),
]
WORLDS = {2: CASES, 6: FEW}  # uneven, and more ranks than groups


def config_of(name, tokens, lora, stale):
    return RLConfig(
        steps=2,
        mu=MU,
        algorithm=load_algorithm({"name": name, **ALGORITHMS[name]}),
        micro_batch_tokens=tokens,
        lora=LoRAConfig(r=4, alpha=8) if lora else None,
        importance_cap=1.02 if stale else None,
        optimizer=OptimizerConfig(learning_rate=1e-5, weight_decay=0.0),
    )


def batch_of(folder, config):
    """Five groups with prompts of different lengths; one ends with its first token."""
    draw, model, algorithm = np.random.default_rng(0), load_model(folder), config.algorithm
    completions = draw.integers(2, 20, (GROUPS, 3, 6)).astype(np.int32)
    completions[1, :, 0] = model.config.eos_token_id
    groups = tuple(
        Group(
            g,
            draw.integers(2, 20, 3 + 2 * g).astype(np.int32),
            completions[g],
            np.tile(np.arange(6, dtype=np.int32), (3, 1)),
            up_to_first_eos(completions[g], model.config.eos_token_id),
        )
        for g in range(GROUPS)
    )
    logps = []
    for group in groups:
        views = [v for inner in range(MU) for v in algorithm.estimator.views(group, MASK, SEED, inner)]
        logps.append(torch.from_numpy(group_logps(model, group, views, 16384)))
    old = torch.stack(logps).unflatten(2, (MU, -1))
    noise = torch.from_numpy(draw.standard_normal(old.shape).astype(np.float32))
    return Batch(
        groups,
        old + 0.05 * noise if algorithm.needs_old else None,
        old + 0.1 * noise if algorithm.needs_reference else None,
        torch.from_numpy(algorithm.advantages(draw.random((GROUPS, 3)).astype(np.float32))),
    )


def learned(folder, case, sharded, offload=False, bf16=False, moved=False):
    """The gradient and metrics of one update, and the weights and metrics after a step of all."""
    config, stale = config_of(*case), case[-1]
    batch = batch_of(folder, config)
    found = {}
    for part in ("update", "step"):
        model = load_model(folder)
        if config.lora:
            add_lora(model, config.lora)
        scorer = ViewLogps(model, bf16)
        if sharded:
            shard(scorer, model, torch.device("cpu"), bf16, offload)
        if moved:  # to other memory, as between devices: fp64 holds every fp32 number
            scorer.to(torch.float64).to(torch.float32)
        if part == "update":
            seen = with_proximal(model, batch, SEED, config, scorer) if stale else batch
            found["metrics"] = accumulate_gradient(model, seen, 0, SEED, config, scorer)
            trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        else:
            optimizer = adamw(model, config.optimizer)
            found["means"] = learn(model, optimizer, batch, 0, SEED, config, scorer, stale)
            trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        found[part] = {name: whole(tensor) for name, tensor in trained.items()}
    return found


def rank_main(rank, world, port, folder, out, cases, ways):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=60))
    try:
        for i, case in enumerate(cases):
            for way, arguments in ways.items():
                found = learned(folder, case, **arguments)
                if rank == world - 1:  # the one with the least to do
                    torch.save(found, out / f"{world}-{i}-{way}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    from d1ray.config.model import ArchitectureConfig
    from d1ray.models.make import make_model

    path = tmp_path_factory.mktemp("ranks") / "model"
    make_model(ArchitectureConfig(d_model=32, n_layers=2, mlp_hidden_size=48), 0, path)
    model = load_model(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    save_model(model, path, tokenizer)
    return path


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory, start_ranks):
    out = tmp_path_factory.mktemp("out")
    ways = {sharded: {"sharded": sharded} for sharded in (False, True)}
    for world, cases in WORLDS.items():
        start_ranks(rank_main, world, folder, out, cases, ways)
    return {file.stem: torch.load(file) for file in out.glob("*.pt")}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize(("world", "case"), [(w, case) for w in WORLDS for case in WORLDS[w]], ids=str)
def test_ranks_learn_as_one_process(results, folder, case, world, sharded):
    one, many = learned(folder, case, False), results[f"{world}-{WORLDS[world].index(case)}-{sharded}"]
    assert 0 < one["metrics"].get("importance_truncated", 0.5) < 1
    assert many["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-6)
    assert many["means"] == pytest.approx(one["means"], rel=1e-4, abs=1e-6)
    gradient = torch.cat([g.flatten() for g in one["update"].values()])
    assert gradient.norm() > 1e-3
    for name, expected in one["update"].items():
        torch.testing.assert_close(many["update"][name], expected, atol=1e-5 * float(gradient.norm()), rtol=0)
    for name, expected in one["step"].items():
        torch.testing.assert_close(many["step"][name], expected, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def ways(folder, tmp_path_factory, start_ranks):
    """Sharded ranks: two that keep what they hold, in fp32 and in bf16, two and one that offload it, and two
    whose weights have been elsewhere."""
    out = tmp_path_factory.mktemp("out")
    sharded, offload = {"sharded": True}, {"sharded": True, "offload": True}
    two = {
        "kept": sharded,
        "offloaded": offload,
        "moved": sharded | {"moved": True},
        "bf16": sharded | {"bf16": True},
    }
    start_ranks(rank_main, 2, folder, out, FEW, two)
    start_ranks(rank_main, 1, folder, out, FEW, {"offloaded": offload})
    return {file.stem: torch.load(file) for file in out.glob("*.pt")}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_offloaded_ranks_and_those_that_moved_learn_the_same(ways, folder, case):
    i = FEW.index(case)
    for found, expected in (
        (ways[f"2-{i}-offloaded"], ways[f"2-{i}-kept"]),
        (ways[f"2-{i}-moved"], ways[f"2-{i}-kept"]),
        (ways[f"1-{i}-offloaded"], learned(folder, case, False)),
    ):
        assert (found["metrics"], found["means"]) == (expected["metrics"], expected["means"])
        for part in ("update", "step"):
            assert all(torch.equal(found[part][name], tensor) for name, tensor in expected[part].items())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_sharded_ranks_in_bf16_learn_as_one_process_up_to_its_rounding(ways, folder, case):
    one, many = learned(folder, case, False, bf16=True), ways[f"2-{FEW.index(case)}-bf16"]

    def gradient(found):
        return torch.cat([part.flatten() for part in found["update"].values()])

    rounding = float((gradient(one) - gradient(learned(folder, case, False))).norm())
    assert rounding > 1e-3 * float(gradient(one).norm())  # it is bf16 indeed
    assert float((gradient(many) - gradient(one)).norm()) < rounding
    assert many["metrics"] == pytest.approx(one["metrics"], rel=2e-2, abs=1e-2)
    assert {tensor.dtype for tensor in many["update"].values()} == {torch.float32}
