"""What ranks tell each other travels as JSON, and nothing of torch's in use unpickles what another sent."""

import ast
import json
import math
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import actors
import d1ray
from d1ray.models.exchange import told_by_all

VALUES = [{"loss": 0.1 + 0.2, "kl": -0.0, "b": 1e-320}, {}, {"note": "größer", "loss": math.nan, "n": 2**60}]
OBJECTS = {  # what unpickles, in torch or by itself
    "all_gather_object",
    "gather_object",
    "broadcast_object_list",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
    "pickle",
    "cloudpickle",
    "TCPStore",  # listens on every interface
}


def rank_main(rank, world, port, out):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=60))
    told = told_by_all(VALUES[rank])
    torch.manual_seed(rank)
    module = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))  # as Ray Train wraps a model
    module(torch.full((1, 2), 1.0 + rank)).sum().backward()
    gradient = module.module.weight.grad.tolist()
    with pytest.raises(AssertionError, match="it would unpickle"):  # so start_ranks finds those that do
        dist.all_gather_object([None] * world, rank)
    dist.destroy_process_group()
    (out / f"{rank}.json").write_text(json.dumps([told, gradient]))


def test_every_rank_hears_all_in_their_order_and_nobody_unpickles(start_ranks, tmp_path):
    start_ranks(rank_main, len(VALUES), tmp_path)
    for rank in range(len(VALUES)):
        told, gradient = json.loads((tmp_path / f"{rank}.json").read_text())
        assert str(told) == str(VALUES)  # nan and -0.0 too
        assert gradient == [[2.0, 2.0]]  # the mean of 1, 2 and 3


def test_alone_one_hears_oneself():
    assert told_by_all({"a": 1}) == [{"a": 1}]


TRUSTING = {"checker.py", "checking.py"}  # the process unpickles what its owner sends by their socket


def test_no_module_names_what_unpickles_or_listens_everywhere():
    for package in (actors, d1ray):
        for file in Path(package.__path__[0]).rglob("*.py"):
            if file.name in TRUSTING and file.parent.name == "tasks":
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                names = {getattr(node, "id", None), getattr(node, "attr", None)}
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names |= {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & OBJECTS, f"{file}:{node.lineno}"
