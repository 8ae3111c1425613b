"""A served completion is the same, bit for bit, whatever it is batched with."""

import random

import pytest
import torch

from d1ray.config.errors import ModelError
from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.decoding import DECODINGS
from d1ray.diffusion.sampler import sample
from d1ray.serving.denoise import denoise
from d1ray.serving.row import Row, width
from d1ray.serving.rowwise import make_rowwise, rowwise_linear
from d1ray.serving.weights import Weights

EOS = 3  # which the model says now and then
CONTEXT = 256


@pytest.fixture(params=["llada", "dream"])
def weights(request, make_model, make_dream) -> Weights:
    if request.param == "llada":
        model = make_model(2, mlp_hidden_size=64, eos_token_id=EOS, max_sequence_length=CONTEXT)
    else:
        model = make_dream(2, intermediate_size=64, eos_token_id=EOS, max_position_embeddings=CONTEXT)
    return Weights(model, "v1")


def requests(count: int, seed: int) -> list[tuple[list[int], SamplerConfig, tuple[int, int]]]:
    """Prompts of 1 to 80 tokens with every mixture of settings."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        block, blocks = draw.choice([4, 8, 16]), draw.randint(1, 3)
        config = SamplerConfig(
            gen_length=block * blocks,
            block_length=block,
            steps=blocks * draw.randint(1, block),
            temperature=draw.choice([0, 0.3, 0.7, 1.0]),
            decoding=draw.choice(list(DECODINGS)),
            threshold=0.2,
            factor=2.4,
            entropy_bound=2.5,
            cache=draw.choice(["none", "prefix", "dual"]),
        )
        prompt = [draw.randint(4, 19) for _ in range(draw.randint(1, 80))]
        made.append((prompt, config, (draw.randint(0, 9999), 0)))
    return made


def completions(weights: Weights, asked, draw: random.Random | None = None):
    """(tokens, forwards, every commit) of each; with ``draw`` rows join, move and pause at random."""
    rows = [Row(weights, p, config, seed, config.gen_length, {EOS}) for p, config, seed in asked]
    told = {row: [] for row in rows}
    waiting, active = list(rows), []
    while waiting or active:
        count = draw.randint(0, 8) if draw else len(waiting)
        active, waiting = active + waiting[:count], waiting[count:]
        if draw:
            draw.shuffle(active)
            paused = [row for row in active if row.entering and row.steps and draw.random() < 0.3]
            active, waiting = [row for row in active if row not in paused], waiting + paused
        if active:
            for row, commit in zip(active, denoise(active), strict=True):
                told[row].append(commit)
        active = [row for row in active if row.finish is None]
    return [(row.completion(), row.steps, told[row]) for row in rows]


def test_64_requests_in_any_batches_equal_each_alone_bit_for_bit(weights):
    asked = requests(64, 0)
    together = completions(weights, asked, random.Random(0))
    assert together == [completions(weights, [request])[0] for request in asked]
    assert len({len(prompt) for prompt, _, _ in asked}) > 30


def test_a_row_alone_is_what_the_sampler_gives(weights):
    for prompt, config, seed in requests(32, 2):
        [(ids, _, _)] = completions(weights, [(prompt, config, seed)])
        sampled = sample(weights.model, [prompt], config, [seed]).ids[0].tolist()
        assert ids == sampled[: sampled.index(EOS) if EOS in sampled else len(sampled)]


def test_a_row_ends_as_soon_as_its_text_is_settled(weights):
    finished = 0
    for prompt, config, seed in requests(32, 3):
        row = Row(weights, prompt, config, seed, config.gen_length, {EOS})
        while row.finish is None:
            before = row.settled
            denoise([row])
        tokens = row.tokens[row.start :].tolist()
        assert row.mask_id not in tokens[: row.settled]
        if row.finish == "stop":
            finished += row.mask_id in tokens
            assert tokens[row.settled] == EOS
        else:
            assert row.settled == config.gen_length > before
    assert finished  # some before their last block


def test_only_as_many_tokens_count_as_are_asked_for(weights):
    config = SamplerConfig(gen_length=16, steps=16, block_length=8, temperature=0)
    row = Row(weights, [4, 5, 6], config, (0, 0), 5, {EOS})
    while row.finish is None:
        denoise([row])
    assert len(row.completion()) == 5 if row.finish == "length" else len(row.completion()) < 5
    assert row.block == 0


def test_a_linear_layer_gives_a_row_the_same_bits_in_any_batch():
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(33, 7, 48, generator=draw), torch.randn(96, 48, generator=draw)
    alone = torch.cat([rowwise_linear(x[row : row + 1].clone(), weight) for row in range(33)])
    for rows in (2, 3, 8, 33):
        assert torch.equal(rowwise_linear(x[-rows:].clone(), weight), alone[-rows:])
    bias = torch.randn(96, generator=draw)
    layer = torch.nn.Linear(48, 96)
    layer.weight.data, layer.bias.data = weight, bias
    usual = layer(x)
    make_rowwise(layer)
    assert torch.allclose(layer(x), usual, atol=1e-5)
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_exactness_is_refused_where_it_is_asked_for_and_the_activations_do_not_allow_it(make_model):
    with pytest.raises(ModelError, match="48 outputs"):
        Weights(make_model(mlp_hidden_size=48), "v1", True)
    assert not Weights(make_model(mlp_hidden_size=48), "v1").exact
    assert Weights(make_model(mlp_hidden_size=64), "v1").exact
    assert not Weights(make_model(mlp_hidden_size=64), "v1", False).exact


def test_a_rows_width_is_one_of_few_and_never_leaves_the_context():
    for length in range(1, 2049):
        columns = width(length, 2048)
        assert length <= columns <= 2048
        assert columns == 64 or columns * 2 <= 3 * length
    assert {width(length, 10**9) for length in range(1, 513)} == {64, 96, 128, 192, 256, 384, 512}
    assert width(100, 100) == 100
