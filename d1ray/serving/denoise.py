"""One denoising step of many rows, each with its own length, schedule, temperature, decoding and cache.

Rows of like width share forward passes, rows with like settings share the choice of tokens. With ``exact``
weights all of it is the same, bit for bit, whatever rows are denoised together.

Shapes: R rows of a group, C columns, K block length, N masked positions, d model width, V vocabulary.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from d1ray.diffusion.decoding import DECODINGS, choose
from d1ray.diffusion.proposal import LOGITS_BYTES, predict
from d1ray.models.cache import KVCache
from d1ray.serving.row import Commit, Row
from d1ray.serving.rowwise import rowwise_linear
from d1ray.serving.weights import Weights

T = TypeVar("T")


@torch.inference_mode()
def denoise(rows: Sequence[Row]) -> list[Commit]:
    """Takes every row one denoising step further, in place; what each committed, in order.

    Raises:
        FloatingPointError: a logit is NaN or +inf, or none is finite.
    """
    commits: dict[Row, Commit] = {}
    for group in _grouped(rows, _pass):
        hidden = _hidden(group)
        for chosen in _grouped(range(len(group)), [row.how for row in group].__getitem__):
            members = [group[place] for place in chosen]
            part = hidden if len(chosen) == len(group) else hidden[torch.tensor(chosen, device=hidden.device)]
            commits |= zip(members, _choose(members, part), strict=True)
    for row, commit in commits.items():
        row.commit(commit)
    return [commits[row] for row in rows]


def _pass(row: Row) -> Hashable:
    """What rows have in common that share a forward pass."""
    keeps = row.config.cache != "none"
    return row.weights, row.columns, row.reach, keeps, row.window


def _hidden(rows: Sequence[Row]) -> Tensor:
    """Hidden states ``[R, reach, d]`` that predict the rows' active blocks, and what may follow them."""
    first = rows[0]
    weights = first.weights
    tokens = weights.on_device(np.stack([row.tokens for row in rows]))
    # A mask is always given: whether there is one, too, must not depend on the rows beside.
    attended = weights.on_device(np.stack([row.attended for row in rows]))
    starts = weights.on_device(np.array([row.at for row in rows]))
    at = starts[:, None] + torch.arange(first.reach, device=starts.device)
    at = at.clamp(max=first.columns - 1)
    if first.config.cache == "none":
        return weights.model.hidden(tokens, attended, at=at)
    if first.window is None:
        cache = KVCache()
        hidden = weights.model.hidden(tokens, attended, at=at, cache=cache)
        for place, row in enumerate(rows):
            row.kept = cache, place
        return hidden
    window = starts[:, None] + torch.arange(first.window, device=starts.device)
    return weights.model.hidden(tokens, attended, at=at, cache=_gathered(rows), window=window)


def _gathered(rows: Sequence[Row]) -> KVCache:
    """One cache of these rows, in order; their own where they have it in common already."""
    kept = [row.kept for row in rows if row.kept is not None]
    first = kept[0][0]
    if all(cache is first for cache, _ in kept):
        places = [place for _, place in kept]
        if places == list(range(first.shape[0])):
            return first
        gathered = first.select(torch.tensor(places, device=first.keys[0].device))
    else:
        gathered = KVCache()
        for layer in range(len(first.keys)):
            gathered.keys.append(torch.stack([cache.keys[layer][place] for cache, place in kept]))
            gathered.values.append(torch.stack([cache.values[layer][place] for cache, place in kept]))
    for place, row in enumerate(rows):
        row.kept = gathered, place
    return gathered


def _choose(rows: Sequence[Row], hidden: Tensor) -> list[Commit]:
    """Which positions of each row's block become which tokens.

    Args:
        rows: R rows with equal ``how``.
        hidden: ``[R, K, d]``: K is their ``reach``, where shorter blocks are followed by what is not chosen.
    """
    weights, config = rows[0].weights, rows[0].config
    length = rows[0].reach
    still = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        block = row.config.block_length
        still[i, :block] = row.tokens[row.at : row.at + block] == row.mask_id
    masked = weights.on_device(still)  # [R, K]
    token_noise, position_noise = _uniforms(rows)
    heat = weights.on_device(np.array([row.config.temperature for row in rows], np.float32))
    tokens, logps, confidence = [], [], []
    for start in range(0, len(rows), _chunk(weights, length)):
        chunk = slice(start, start + _chunk(weights, length))
        here = masked[chunk]
        prediction = predict(
            _logits(weights, hidden[chunk], here),
            weights.model.config.mask_token_id,
            None if token_noise is None else token_noise[chunk][here],
            0.0 if token_noise is None else heat[chunk, None].expand_as(here)[here][:, None],
        )
        tokens.append(prediction.tokens)
        logps.append(prediction.logps)
        confidence.append(DECODINGS[config.decoding].confidence(prediction))

    def spread(values: list[Tensor]) -> Tensor:
        joined = torch.cat(values)
        return joined.new_zeros(masked.shape).masked_scatter(masked, joined)

    quota = weights.on_device(np.array([row.quota for row in rows]))
    commit = choose(spread(confidence), masked, quota, position_noise, config)
    picked = commit.cpu().numpy()
    proposed, probability = spread(tokens).cpu().numpy(), spread(logps).exp().cpu().numpy()
    return [
        Commit(
            (np.flatnonzero(picked[i]) + row.at - row.start).tolist(),
            proposed[i, picked[i]].tolist(),
            probability[i, picked[i]].tolist(),
        )
        for i, row in enumerate(rows)
    ]


def _logits(weights: Weights, hidden: Tensor, masked: Tensor) -> Tensor:
    """fp32 logits ``[N, V]`` of the masked positions of ``hidden [r, K, d]``. Exact ones are computed of all
    K: how many are masked changes from row to row, and with it the shape of the product."""
    if not weights.exact:
        return weights.model.head(hidden[masked]).float()
    return rowwise_linear(hidden, weights.model.head_weight)[masked].float()


def _chunk(weights: Weights, length: int) -> int:
    """Rows whose logits are held at once."""
    return max(1, LOGITS_BYTES // (4 * weights.model.config.vocab_size * length))


def _uniforms(rows: Sequence[Row]) -> tuple[Tensor | None, Tensor | None]:
    """Uniforms ``[R, K]`` for tokens and for positions, each None where it is not used."""
    drawn = [uniforms for row in rows if (uniforms := row.uniforms()) is not None]
    if not drawn:
        return None, None
    padded = np.zeros((len(drawn[0]), len(rows), rows[0].reach))
    for i, uniforms in enumerate(drawn):
        padded[:, i, : uniforms.shape[1]] = uniforms
    both = rows[0].weights.on_device(padded)  # [1 or 2, R, K]
    greedy = rows[0].how.greedy
    return None if greedy else both[0], both[-1] if greedy or len(both) == 2 else None


def _grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items with equal keys together, in order of appearance."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
