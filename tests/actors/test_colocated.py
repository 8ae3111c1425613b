"""Colocated actors take turns on a GPU: they compute the same, and who rests holds none of its memory.

On a machine without a GPU the moves go from the CPU to the CPU, and the tests of memory are skipped.
"""

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from actors.generator import Generator
from actors.learner import Learner
from actors.policy import Parcel, PolicyRef, Weights
from d1ray.config.lora import LoRAConfig
from d1ray.config.optimizer import OptimizerConfig
from d1ray.config.rl import RLConfig
from d1ray.config.rng import generator
from d1ray.config.run import Config
from d1ray.config.sampling import SamplerConfig
from d1ray.models.save import save_model
from d1ray.models.weights import pack
from d1ray.rl import schema
from d1ray.rl.rollout import Prompt, Request
from d1ray.rl.scoring import score_rollouts
from d1ray.tasks.sudoku import Sudoku

TASK = Sudoku(template="{puzzle}")
SAMPLING = SamplerConfig(gen_length=8, steps=4, block_length=4, temperature=1.0)
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def config_of(lora=None):
    optimizer = OptimizerConfig(learning_rate=1e-3)
    return RLConfig(
        steps=2,
        mu=2,
        group_size=2,
        sampling=SAMPLING,
        lora=lora,
        optimizer=optimizer,
        reference_sync_updates=2,
    )


@pytest.fixture(autouse=True)
def plain_references(monkeypatch):
    """Buckets and tables are handed over themselves instead of references to them."""
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)


@pytest.fixture
def folder(tmp_path, make_text_model, tokenizer):
    save_model(make_text_model(0), tmp_path / "start", tokenizer)
    return tmp_path / "start"


@pytest.fixture
def request_of_two():
    return Request(
        (Prompt(0, (4, 5, 6), TASK.draw("test", generator(0, "test"))),), 2, SAMPLING, 0, config_of()
    )


def full_weights(model, version):
    tensors = model.state_dict()
    return Weights(version, (Parcel(0, version, pack(tensors, list(tensors))),))


@pytest.fixture
def policy(make_text_model):
    return PolicyRef(0, full_weights(make_text_model(3), 3), full_weights(make_text_model(4), 0))


def devices(tensors):
    return {tensor.device.type for tensor in tensors}


def test_a_generator_that_rests_between_its_calls_generates_the_same(folder, request_of_two, policy):
    always, sometimes = (Generator(folder, 1, 10, colocated=colocated) for colocated in (False, True))
    assert devices(sometimes.model.parameters()) == {"cpu"}
    for _ in range(2):
        expected, _ = always.generate(request_of_two, policy)
        found, _ = sometimes.generate(request_of_two, policy)
        for name in ("completion_ids", "old_logps", "reference_logps"):
            assert found[name].equals(expected[name])
        assert devices(sometimes.model.parameters()) == {sometimes.device.type}
        sometimes.rest()
        assert devices([*sometimes.model.parameters(), *sometimes.reference.parameters()]) == {"cpu"}


@on_gpu
def test_a_resting_generator_holds_no_gpu_memory(folder, request_of_two, policy):
    worker = Generator(folder, 1, 10, colocated=True)
    worker.generate(request_of_two, policy)
    assert torch.cuda.memory_allocated() > 0
    worker.rest()
    assert torch.cuda.memory_allocated() == 0


@pytest.fixture
def table(folder, request_of_two, policy):
    generated, _ = Generator(folder, 1, 10).generate(request_of_two, policy)
    scored = score_rollouts(generated, TASK)
    field = schema.SCORED.field("reward")
    return scored.set_column(scored.schema.get_field_index("reward"), field, pa.array([0, 1], pa.float32()))


def run_of(rl, **cluster):
    return Config(task=TASK, model={"path": "model"}, rl=rl, cluster={"deadline_s": 10, **cluster})


@pytest.mark.parametrize("lora", [None, LoRAConfig(r=2)], ids=["whole", "adapter"])
def test_a_learner_that_leaves_its_gpu_between_steps_learns_the_same(folder, table, tmp_path, lora):
    learners = [Learner(run_of(config_of(lora), colocated=colocated), folder) for colocated in (False, True)]
    for learner in learners:
        learner.build(("", 0))
        for step in range(2):
            _, standing = learner.learn([table], step, tmp_path / "rollouts.parquet")
        assert (standing.version, standing.reference_version) == (2, 2)
    always, sometimes = learners
    for mine, theirs in ((sometimes.live, always.live), (sometimes.reference, always.reference)):
        assert devices(mine.values()) == {"cpu"}
        assert all(torch.equal(mine[name], tensor.cpu()) for name, tensor in theirs.items())
    assert any(not torch.equal(a, b) for a, b in zip(always.live.values(), _start(folder, lora), strict=True))
    for which in ("policy", "reference"):
        ours, others = (learner.parcel(which, 0)[0].bucket for learner in (sometimes, always))
        assert all(np.array_equal(ours[name], data) for name, data in others.items())


def _start(folder, lora):
    learner = Learner(run_of(config_of(lora)), folder)
    learner.build(("", 0))
    return learner.live.values()


@on_gpu
def test_a_learner_holds_no_gpu_memory_between_steps(folder, table, tmp_path):
    learner = Learner(run_of(config_of(), colocated=True), folder)
    learner.build(("", 0))
    assert torch.cuda.memory_allocated() == 0
    learner.learn([table], 0, tmp_path / "rollouts.parquet")
    assert torch.cuda.max_memory_allocated() > 0
    assert torch.cuda.memory_allocated() == 0
