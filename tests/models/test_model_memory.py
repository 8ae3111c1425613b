"""Loading needs room for the model and one file, saving for no second copy.

Each runs in a process whose private memory (RLIMIT_DATA) is limited: resident memory depends on the kernel's
page sizes and counters, the limit does not. Tensors are mapped one by one, so that none fragments the heap.
"""

import os
import subprocess
import sys

import pytest

from d1ray.models.llada import LLaDA
from d1ray.models.llada_config import LLaDAConfig
from d1ray.models.save import save_model

MIB = 2**20
FILE = 16 * MIB
SLACK = 8 * MIB  # allocator and page tables; a second copy of anything would be more than this

WITHIN = """
import resource, sys
from pathlib import Path
import torch
from d1ray.models import load_model, save_model

torch.set_num_threads(1)
big, tiny, out, job, room = sys.argv[1:]

def limit_to(room):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmData"))
    most = int(line.split()[1]) * 1024 + int(room)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))

save_model(load_model(tiny), out)  # imports what loading and saving import
if job == "load":
    limit_to(room)
    model = load_model(big)
else:
    model = load_model(big)
    limit_to(room)
    save_model(model, out, file_bytes=2**24)
"""


def make(width, vocabulary) -> LLaDA:
    return LLaDA(
        LLaDAConfig(
            d_model=width,
            n_layers=4,
            n_heads=8,
            mlp_hidden_size=2 * width,
            vocab_size=vocabulary,
            max_sequence_length=64,
            mask_token_id=1,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


@pytest.fixture(scope="module")
def within(tmp_path_factory):
    """(bytes of the model, whether a job ends well with that many more bytes of memory)."""
    if not sys.platform.startswith("linux"):
        pytest.skip("a process's private memory can be limited on Linux only")
    root = tmp_path_factory.mktemp("memory")
    model = make(768, 2048)
    save_model(model, root / "big", file_bytes=FILE)
    save_model(make(16, 8), root / "tiny")

    def succeeds(job: str, room: int) -> bool:
        arguments = [*(str(root / name) for name in ("big", "tiny", "out")), job, str(room)]
        done = subprocess.run(
            [sys.executable, "-c", WITHIN, *arguments],
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0 or "memory" in done.stderr, done.stderr
        return done.returncode == 0

    return sum(p.nbytes for p in model.parameters()), succeeds


def test_loading_takes_the_model_and_one_file(within):
    size, succeeds = within
    assert size > 3 * FILE + SLACK  # or reading everything at once would pass as well
    assert succeeds("load", size + FILE + SLACK)
    assert not succeeds("load", size - FILE)  # the limit is felt


def test_saving_makes_no_second_copy(within):
    _, succeeds = within
    assert succeeds("save", SLACK)
