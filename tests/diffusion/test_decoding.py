"""Decoding policies: confidences worked out by hand, and ranks small enough to count by eye."""

import math

import pytest
import torch

from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.decoding import DECODINGS, Prediction, choose, draws_positions

NONE = -math.inf  # not masked
BASE = {"gen_length": 4, "block_length": 4, "steps": 4}


def commits(confidence, quota=1, uniforms=None, **settings):
    confidence = torch.tensor([confidence])
    uniforms = None if uniforms is None else torch.tensor([uniforms], dtype=torch.float64)
    config = SamplerConfig(**BASE, **settings)
    chosen = choose(confidence, confidence > NONE, torch.tensor([quota]), uniforms, config)
    return "".join(".x"[committed] for committed in chosen[0].tolist())


@pytest.mark.parametrize(
    ("confidence", "quota", "committed"),
    [
        ([0.2, 0.9, NONE, 0.5], 1, ".x.."),
        ([0.2, 0.9, NONE, 0.5], 2, ".x.x"),
        ([0.2, 0.9, NONE, 0.5], 4, "xx.x"),  # never what is not masked
        ([0.5, 0.5, 0.5, 0.5], 2, "xx.."),  # ties: from the left
        ([0.0, NONE, 0.0, NONE], 1, "x..."),  # a probability may underflow
        ([-3.0, -1.0, -2.0, NONE], 2, ".xx."),  # an entropy is negated
    ],
)
@pytest.mark.parametrize("decoding", ["low_confidence", "entropy", "topk_margin", "maskgit_plus"])
def test_a_scheduled_policy_commits_the_most_confident(decoding, confidence, quota, committed):
    assert commits(confidence, quota, decoding=decoding) == committed


@pytest.mark.parametrize(
    ("confidence", "committed"),
    [
        ([0.81, 0.9, NONE, 0.5], "xx.."),
        ([0.2, 0.3, NONE, 0.1], ".x.."),  # at least one
        ([0.75, 0.7, 0.75, 0.6], "x.x."),  # reached is enough
        ([1.0, 1.0, 1.0, 1.0], "xxxx"),
    ],
)
def test_threshold_commits_all_that_reach_it_and_at_least_one(confidence, committed):
    assert commits(confidence, decoding="threshold", threshold=0.75) == committed


@pytest.mark.parametrize(
    ("confidence", "factor", "committed"),
    [
        # Rank 1 always; rank 2 from 1 - f/3, rank 3 from 1 - f/4, rank 4 from 1 - f/5.
        ([0.1, 0.05, 0.05, 0.05], 1.0, "x..."),
        ([0.9, 0.67, 0.7, 0.5], 1.0, "x.x."),  # .7 >= 2/3, .67 < 3/4
        ([0.9, 0.76, 0.8, 0.81], 1.0, "x.xx"),  # .81 and .8 pass, .76 < 4/5
        ([0.9, 0.9, 0.9, 0.9], 0.5, "xxxx"),  # 5/6, 7/8, 9/10
        ([0.9, 0.9, 0.9, 0.89], 0.5, "xxx."),  # the last rank fails and is not committed
        ([0.99, 0.5, 0.99, 0.99], 0.0, "x..."),
        ([0.3, NONE, 0.4, NONE], 2.0, "..x."),  # .3 < 1/3
    ],
)
def test_factor_commits_ranks_while_they_reach_their_own_bound(confidence, factor, committed):
    assert commits(confidence, decoding="factor", factor=factor) == committed


@pytest.mark.parametrize(
    ("entropies", "bound", "committed"),
    [
        ([0.5, 0.2, 0.3, 0.9], 0.1, ".x.."),  # the least alone: nothing but the largest
        ([0.5, 0.25, 0.375, 0.9], 0.25, ".xx."),  # .25 before rank 2; .625 before rank 3
        ([0.5, 0.25, 0.375, 0.9], 0.7, "xxx."),
        ([0.0, 0.0, 0.0, 2.0], 0.0, "xxxx"),  # the certain ones, and the largest for nothing
        ([0.5, None, 0.25, None], 9.0, "x.x."),
    ],
)
def test_entropy_bound_commits_while_the_smaller_entropies_sum_to_it(entropies, bound, committed):
    confidence = [NONE if entropy is None else -entropy for entropy in entropies]
    assert commits(confidence, decoding="entropy_bound", entropy_bound=bound) == committed


def test_each_row_has_its_own_quota():
    confidence = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
    everywhere = torch.ones_like(confidence, dtype=torch.bool)
    committed = choose(confidence, everywhere, torch.tensor([1, 2]), None, SamplerConfig(**BASE))
    assert committed.tolist() == [[False, False, True], [True, True, False]]


def test_drawn_positions_are_ranked_by_confidence_over_temperature_plus_gumbel_noise():
    # -log(-log u) of these uniforms is 1, 0, -1; over a temperature of 1/2 confidences count double.
    gumbel = [math.exp(-math.exp(-g)) for g in (1.0, 0.0, -1.0)]
    settings = {"position_temperature": 0.5}
    assert commits([0.0, 0.4, 0.9], 1, gumbel, **settings) == "x.."  # 1, .8, .8
    assert commits([0.0, 0.6, 0.9], 1, gumbel, **settings) == ".x."  # 1, 1.2, .8
    assert commits([0.0, 0.4, 1.1], 1, gumbel, **settings) == "..x"  # 1, .8, 1.2
    assert commits([NONE, 0.4, 1.1], 3, gumbel, **settings) == ".xx"
    assert commits([0.0, 0.0, 0.0], 1, [0.0, 0.0, 0.0], **settings) == "x.."  # the smallest uniform


@pytest.mark.parametrize("name", DECODINGS)
def test_every_policy_commits_some_masked_position_and_only_masked_ones(name):
    config = SamplerConfig(**BASE, decoding=name)
    generator = torch.Generator().manual_seed(0)
    confidence = -torch.rand(200, 4, generator=generator)
    uniforms = (
        torch.rand(200, 4, generator=generator, dtype=torch.float64) if draws_positions(config) else None
    )
    masked = torch.rand(200, 4, generator=generator) < 0.5
    committed = choose(confidence, masked, torch.ones(200, dtype=torch.long), uniforms, config)
    assert not committed[~masked].any()
    assert (committed.any(-1) == masked.any(-1)).all()
    assert (committed & masked).sum() < masked.sum()


# Two positions over five tokens, of which token 1 is the mask: probabilities of 20ths and of 10ths.
WEIGHTS = [[8.0, 4.0, 4.0, 2.0, 2.0], [1.0, 0.0, 9.0, 0.0, 0.0]]


def confidence(name, temperature, tokens):
    logits = torch.tensor(WEIGHTS).log()
    logps = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).squeeze(1)
    prediction = Prediction(logits, temperature, torch.tensor(tokens), logps)
    return DECODINGS[name].confidence(prediction).tolist()


def entropy(*weights):
    return -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["low_confidence", "threshold", "factor"])
def test_lladas_confidence_is_the_proposals_probability_at_temperature_one(name, temperature):
    assert confidence(name, temperature, [2, 2]) == pytest.approx([0.2, 0.9])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_dreams_confidences_without_tempering(temperature):
    assert confidence("maskgit_plus", temperature, [3, 0]) == pytest.approx([0.1, 0.1])
    assert confidence("topk_margin", temperature, [3, 0]) == pytest.approx([0.2, 0.8])
    expected = [-entropy(8, 4, 4, 2, 2), -entropy(1, 9)]
    assert confidence("entropy", temperature, [3, 0]) == pytest.approx(expected, abs=1e-6)


def test_dreams_confidences_are_of_the_tempered_probabilities():
    # At T = 1/2 the weights are squared: 64, 16, 16, 4, 4 of 104, and 1, 81 of 82.
    assert confidence("maskgit_plus", 0.5, [0, 2]) == pytest.approx([64 / 104, 81 / 82])
    assert confidence("topk_margin", 0.5, [3, 0]) == pytest.approx([48 / 104, 80 / 82])
    expected = [-entropy(64, 16, 16, 4, 4), -entropy(1, 81)]
    assert confidence("entropy", 0.5, [3, 0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_the_bounded_entropy_is_of_temperature_one(temperature):
    expected = [-entropy(8, 4, 4, 2, 2), -entropy(1, 9)]
    assert confidence("entropy_bound", temperature, [0, 0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("decoding", ["low_confidence", "maskgit_plus", "topk_margin"])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_near_certain_positions_are_ranked_by_what_is_left(decoding, temperature):
    """1 - p of 2e-9 and 1e-9: both are 1 in fp32, the second is the surer."""
    logits = torch.tensor([[0.0, -20.0, -30.0], [0.0, -20.0 - math.log(2), -30.0]]) * (temperature or 1)
    tokens = torch.tensor([0, 0])
    logps = logits.double().log_softmax(-1)[:, 0]
    prediction = Prediction(logits, temperature, tokens, logps)
    confidence = DECODINGS[decoding].confidence(prediction)
    assert confidence[0] < confidence[1]
    exact = (logits.double() / (temperature or 1)).softmax(-1) if decoding != "low_confidence" else None
    if exact is not None:
        expected = exact[:, 0] if decoding == "maskgit_plus" else exact[:, 0] - exact[:, 1]
        assert torch.allclose(1 - confidence, 1 - expected, rtol=1e-6, atol=0)
