"""What the tests of the core share: one thread, and a tiny LLaDA and Dream whose every weight is random."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from d1ray.config import rng
from d1ray.models.character_tokenizer import character_tokenizer
from d1ray.models.dream import Dream
from d1ray.models.dream_config import DreamConfig
from d1ray.models.initialise import initialise
from d1ray.models.llada import LLaDA
from d1ray.models.llada_config import LLaDAConfig

torch.set_num_threads(1)

EOS, MASK = 0, 1
TINY = LLaDAConfig(
    d_model=32,
    n_layers=2,
    n_heads=4,
    mlp_hidden_size=48,
    vocab_size=20,
    max_sequence_length=64,
    mask_token_id=MASK,
    eos_token_id=EOS,
    pad_token_id=EOS,
)
TINY_DREAM = DreamConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    vocab_size=20,
    max_position_embeddings=64,
    mask_token_id=MASK,
    eos_token_id=EOS,
    pad_token_id=EOS,
)


@pytest.fixture
def tiny_config():
    return TINY


@pytest.fixture
def make_model():
    """``make_model(seed, **config changes)``: norms are random too, or a test could not see them, and
    attention is sharp enough that positions and neighbours tell in the output."""

    def make(seed: int = 0, **changes) -> LLaDA:
        model = initialise(LLaDA(replace(TINY, **changes)), seed).eval()
        with torch.no_grad():
            for index, (name, weight) in enumerate(model.named_parameters()):
                if "wte" in name:
                    weight *= 20
                if "q_proj" in name or "attn_out" in name:
                    weight *= 3
                if "norm" in name or "ln_f" in name:
                    weight += 0.3 * torch.from_numpy(
                        rng.generator(seed, "test", index).standard_normal(weight.shape)
                    )
        return model

    return make


@pytest.fixture
def make_dream():
    """``make_dream(seed, **config changes)``: as ``make_model``; its biases are random too."""

    def make(seed: int = 0, **changes) -> Dream:
        model = initialise(Dream(replace(TINY_DREAM, **changes)), seed).eval()
        with torch.no_grad():
            for index, (name, weight) in enumerate(model.named_parameters()):
                if "embed_tokens" in name:
                    weight *= 20
                if "q_proj.weight" in name or "o_proj" in name:
                    weight *= 3
                if weight.dim() == 1:
                    noise = rng.generator(seed, "test", index).standard_normal(tuple(weight.shape))
                    weight += 0.3 * torch.from_numpy(noise)
        return model

    return make


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture(scope="session")
def tokenizer():
    return character_tokenizer()


@pytest.fixture
def make_text_model(make_model, tokenizer):
    """A tiny model that speaks the character tokenizer's ids."""

    def make(seed: int = 0) -> LLaDA:
        return make_model(
            seed,
            vocab_size=len(tokenizer),
            mask_token_id=tokenizer.mask_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )

    return make


@pytest.fixture(scope="session")
def listening():
    """``with listening(app) as url``: an ASGI application on a free port of the loopback interface."""
    import uvicorn

    @contextmanager
    def listen(app) -> Iterator[str]:
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            for _ in range(500):
                if server.started:
                    break
                time.sleep(0.02)
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)

    return listen


@pytest.fixture
def llada_8b():
    """The folder with LLaDA-8B's config.json and safetensors index (no weights)."""
    folder = Path(__file__).parents[3] / "shared" / "models" / "llada-8b"
    if not folder.is_dir():
        pytest.skip(f"LLaDA-8B's config and index are not in {folder}")
    return folder


@pytest.fixture(scope="session")
def start_ranks():
    """``start_ranks(main, world, *arguments)``: runs ``main(rank, world, port, *arguments)`` in so many new
    processes, which can meet at a free port; raises if one of them fails, or unpickles what another sent."""

    def start(main, world: int, *arguments) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.start_processes(_rank, (main, world, port, *arguments), nprocs=world, start_method="spawn")

    return start


def _rank(rank: int, main, *arguments) -> None:
    from torch.distributed import distributed_c10d

    def refused(*_):
        raise AssertionError("an object collective of torch: it would unpickle what another rank sends")

    distributed_c10d._pickler = distributed_c10d._unpickler = refused
    main(rank, *arguments)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder called "tiny" with a small LLaDA of random weights that writes characters."""
    import torch

    from d1ray.models.character_tokenizer import character_tokenizer
    from d1ray.models.initialise import initialise
    from d1ray.models.llada import LLaDA
    from d1ray.models.llada_config import LLaDAConfig
    from d1ray.models.save import save_model

    folder, tokenizer = tmp_path_factory.mktemp("served") / "tiny", character_tokenizer()
    config = LLaDAConfig(
        d_model=32,
        n_layers=2,
        n_heads=4,
        mlp_hidden_size=64,
        vocab_size=len(tokenizer),
        max_sequence_length=256,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = initialise(LLaDA(config), 3).eval()
    with torch.no_grad():  # sharp enough that the prompt, and every token, tells in what it writes
        for name, weight in model.named_parameters():
            weight *= 20 if "wte" in name else 3 if "q_proj" in name or "attn_out" in name else 1
    save_model(model, folder, tokenizer)
    return folder
