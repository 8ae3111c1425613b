"""The key-value cache against a slow model that keeps what is frozen by hand."""

import math

import pytest
import torch

from d1ray.config import rng
from d1ray.models.cache import KVCache
from d1ray.models.dream import Dream

PADS = [0, 3, 1]  # left padding of the three rows
LENGTH = 14


@pytest.fixture(params=["llada", "dream"])
def model(request, make_model, make_dream):
    """Every weight random, and attention sharp, so that a stale key shows."""
    if request.param == "llada":
        return make_model(n_layers=3, n_kv_heads=2)
    return make_dream(num_hidden_layers=3)


@pytest.fixture
def mask():
    return torch.tensor([[0] * pad + [1] * (LENGTH - pad) for pad in PADS])


def tokens(seed):
    return torch.from_numpy(rng.generator(seed, "test").integers(2, 20, (len(PADS), LENGTH)))


class SlowRow:
    """One row without padding, in float64, a column at a time; ``kept[layer][column]`` is its cache."""

    def __init__(self, model):
        self.dream = isinstance(model, Dream)
        self.weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
        self.theta, self.eps = model.config.rope_theta, model.config.rms_norm_eps
        self.kept = [{} for _ in range(3)]

    def weight(self, layer, llada, dream):
        name = f"model.layers.{layer}.{dream}" if self.dream else f"model.transformer.blocks.{layer}.{llada}"
        return self.weights[name]

    def norm(self, x, weight):
        return x / (x.square().mean() + self.eps).sqrt() * weight

    def project(self, layer, name, x):
        out = self.weight(layer, f"{name}.weight", f"self_attn.{name}.weight") @ x
        return out + self.weight(layer, "", f"self_attn.{name}.bias") if self.dream else out

    def rope(self, x, column):
        heads = []
        for head in x.split(8):
            angle = column * self.theta ** (-2 * torch.arange(4, dtype=torch.float64) / 8)
            a, b = head[:4], head[4:]
            heads += [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]
        return torch.cat(heads)

    def compute(self, ids, columns):
        """Outputs by column, normed; only ``columns`` are computed, all others are as they were kept."""
        embedding = "model.embed_tokens.weight" if self.dream else "model.transformer.wte.weight"
        x = {c: self.weights[embedding][ids[c]] for c in columns}
        for layer in range(3):
            h = {
                c: self.norm(x[c], self.weight(layer, "attn_norm.weight", "input_layernorm.weight"))
                for c in x
            }
            for c in x:
                key, value = self.project(layer, "k_proj", h[c]), self.project(layer, "v_proj", h[c])
                self.kept[layer][c] = self.rope(key, c), value
            for c in x:
                query = self.rope(self.project(layer, "q_proj", h[c]), c)
                x[c] = x[c] + self.attention(layer, query)
                g = self.norm(x[c], self.weight(layer, "ff_norm.weight", "post_attention_layernorm.weight"))
                gate = self.weight(layer, "ff_proj.weight", "mlp.gate_proj.weight") @ g
                up = self.weight(layer, "up_proj.weight", "mlp.up_proj.weight") @ g
                down = self.weight(layer, "ff_out.weight", "mlp.down_proj.weight")
                x[c] = x[c] + down @ (gate * gate.sigmoid() * up)
        final = self.weights["model.norm.weight" if self.dream else "model.transformer.ln_f.weight"]
        return {c: self.norm(x[c], final) for c in x}

    def attention(self, layer, query):
        """Four heads, two to a key head, over everything kept."""
        mixed = []
        for head in range(4):
            mine, theirs = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
            kept = list(self.kept[layer].values())
            scores = torch.stack([query[mine] @ key[theirs] / math.sqrt(8) for key, _ in kept])
            mixed.append(scores.softmax(0) @ torch.stack([value[theirs] for _, value in kept]))
        return self.weight(layer, "attn_out.weight", "self_attn.o_proj.weight") @ torch.cat(mixed)


def slow_cached_pass(model, before, after, start, width):
    """``[B, width, d]``: a full pass over ``before``, then ``after`` where only the window is computed."""
    rows = []
    for row, pad in enumerate(PADS):
        slow = SlowRow(model)
        slow.compute(before[row, pad:], range(LENGTH - pad))
        first = start[row] - pad
        back = 1 if slow.dream else 0  # Dream reads a token's prediction one column earlier
        outputs = slow.compute(after[row, pad:], range(max(first - back, 0), first + width))
        rows.append(torch.stack([outputs[max(c - back, 0)] for c in range(first, first + width)]))
    return torch.stack(rows)


def window_of(start, width):
    return torch.tensor(start)[:, None] + torch.arange(width)


@pytest.mark.parametrize(
    ("start", "width"),
    [
        ([5, 5, 5], 4),  # the dual cache: a block
        ([10, 4, 7], 4),  # rows at blocks of their own
        ([6, 6, 6], 8),  # the prefix cache: a block and everything after it
        ([0, 3, 1], 5),  # from each row's first token
        ([13, 13, 13], 1),
    ],
)
def test_a_window_attends_to_what_was_frozen_and_to_itself(model, mask, start, width):
    before, after, at = tokens(1), tokens(2), window_of(start, width)
    with torch.no_grad():
        cache = KVCache()
        model.hidden(before, mask, cache=cache)
        cached = model.hidden(after, mask, at=at, cache=cache)
        fresh = model.hidden(after, mask, at=at)
    expected = slow_cached_pass(model, before, after, start, width)
    assert (cached - expected).abs().max() < 1e-4
    assert (fresh - expected).abs().max() > 1e-2  # so frozen columns do matter here


def test_filling_the_cache_changes_no_result(model, mask):
    ids, at = tokens(1), window_of([5, 9, 7], 4)
    with torch.no_grad():
        assert torch.equal(model.hidden(ids, mask, cache=KVCache()), model.hidden(ids, mask))
        assert torch.equal(model.hidden(ids, mask, at=at, cache=KVCache()), model.hidden(ids, mask, at=at))


@pytest.mark.parametrize("at", [None, torch.arange(LENGTH).expand(3, -1)], ids=["None", "all columns"])
def test_a_filled_cache_with_all_columns_is_the_whole_pass(model, at):
    with torch.no_grad():
        cache = KVCache()
        model.hidden(tokens(1), cache=cache)
        difference = model.hidden(tokens(2), at=at, cache=cache) - model.hidden(tokens(2))
    assert difference.abs().max() < 1e-5


def test_a_window_that_repeats_its_tokens_changes_nothing(model, mask):
    ids, at = tokens(1), window_of([5, 9, 7], 4)
    with torch.no_grad():
        cache = KVCache()
        whole = model.hidden(ids, mask, cache=cache)
        again = model.hidden(ids, mask, at=at, cache=cache)
    assert (again - whole[torch.arange(3)[:, None], at]).abs().max() < 1e-5


def test_a_window_is_remembered_by_the_next(model, mask):
    before, after = tokens(1), tokens(2)
    half = torch.cat([before[:, :8], after[:, 8:]], dim=1)
    first, second = window_of([8, 8, 8], 6), window_of([4, 4, 4], 4)
    with torch.no_grad():
        cache = KVCache()
        model.hidden(before, mask, cache=cache)
        model.hidden(half, mask, at=first, cache=cache)
        assert not torch.equal(cache.keys[1][:, :, 8:], fill(model, before, mask).keys[1][:, :, 8:])
        once = cache.select(torch.arange(3))
        twice = model.hidden(half, mask, at=second, cache=cache)
        assert torch.equal(twice, model.hidden(half, mask, at=second, cache=once))
        assert (
            twice - model.hidden(half, mask, at=second, cache=fill(model, before, mask))
        ).abs().max() > 1e-3


def fill(model, ids, mask):
    cache = KVCache()
    model.hidden(ids, mask, cache=cache)
    return cache


def test_a_wider_window_predicts_only_the_columns_asked_for(model, mask):
    before, after, window = tokens(1), tokens(2), window_of([5, 5, 5], 9)
    at = torch.tensor([[5, 6, 9], [8, 7, 6], [13, 5, 11]])
    with torch.no_grad():
        wide, narrow = fill(model, before, mask), fill(model, before, mask)
        every = model.hidden(after, mask, at=window, cache=wide)
        some = model.hidden(after, mask, at=at, cache=narrow, window=window)
    assert (some - every[torch.arange(3)[:, None], at - 5]).abs().max() < 1e-5
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(wide.keys, narrow.keys, strict=True))


def test_rows_taken_out_and_put_back_are_as_if_they_had_stayed(model, mask):
    before, after, at = tokens(1), tokens(2), window_of([5, 9, 7], 4)
    rows = torch.tensor([2, 0])
    with torch.no_grad():
        whole, parts = fill(model, before, mask), fill(model, before, mask)
        together = model.hidden(after, mask, at=at, cache=whole)
        taken = parts.select(rows)
        apart = model.hidden(after[rows], mask[rows], at=at[rows], cache=taken)
        untouched = [keys.clone() for keys in parts.keys]
        parts.put(rows, taken)
    assert (apart - together[rows]).abs().max() < 1e-5
    for layer in range(3):
        assert (parts.keys[layer][rows] - whole.keys[layer][rows]).abs().max() < 1e-5
        assert (parts.values[layer][rows] - whole.values[layer][rows]).abs().max() < 1e-5
        assert torch.equal(parts.keys[layer][1], untouched[layer][1])
    assert not torch.equal(untouched[2][rows], parts.keys[2][rows])  # selecting copies


def test_an_empty_cache_says_so(model, mask):
    cache = KVCache()
    assert not cache.filled
    with torch.no_grad():
        model.hidden(tokens(1), mask, cache=cache)
    assert cache.filled


def test_a_cache_of_other_rows_or_columns_is_refused(model, mask):
    with torch.no_grad():
        cache = fill(model, tokens(1), mask)
        with pytest.raises(ValueError, match="3 rows of 14 columns, the input has 2 rows of 14"):
            model.hidden(tokens(1)[:2], mask[:2], cache=cache)
        with pytest.raises(ValueError, match="3 rows of 14 columns, the input has 3 rows of 13"):
            model.hidden(tokens(1)[:, 1:], mask[:, 1:], cache=cache)


def test_a_cache_is_refused_where_gradients_would_flow(model, mask):
    with pytest.raises(ValueError, match="no_grad"):
        model.hidden(tokens(1), mask, cache=KVCache())


def test_a_window_without_a_filled_cache_or_columns_to_predict_is_refused(model, mask):
    ids, at = tokens(1), window_of([5, 9, 7], 4)
    with torch.no_grad():
        for arguments in (
            {"at": at, "window": at},
            {"at": at, "window": at, "cache": KVCache()},
            {"window": at, "cache": fill(model, ids, mask)},
        ):
            with pytest.raises(ValueError, match="window says what to compute with a filled cache"):
                model.hidden(ids, mask, **arguments)
