"""Forward passes that compute as little as the sampler's cache setting allows.

Without a cache every pass is full and exact. With one, the pass in which a row enters a block is full and
fills the row's cache; the passes that follow within the block compute a window of columns only and attend to
the cached keys and values of all others, which have gone stale. The window is the active block and all after
it (``prefix``) or the active block alone (``dual``) (Fast-dLLM, arXiv 2505.22618, Section 3.2).

A row's window follows from its own block: what is computed for a row, rounding aside, does not depend on the
rows beside it.

Shapes: B rows, R rows still active, C columns, K block length, d model width.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from d1ray.models.cache import KVCache
from d1ray.models.model import DiffusionLM


class Passes:
    """The forward passes of one batch of rows, of which some leave but none join.

    Args:
        model: in eval mode.
        attention_mask: ``[B, C]``, 0 at padding, or None.
        cache: what is kept between the passes.
        twins: ``[B]`` the first row with the same prompt as each row. Before anything is committed such rows
            are identical, and the first pass computes them once.
    """

    def __init__(
        self,
        model: DiffusionLM,
        attention_mask: Tensor | None,
        cache: Literal["none", "prefix", "dual"],
        twins: Sequence[int],
    ):
        self.model, self.attention_mask, self.kind = model, attention_mask, cache
        distinct = sorted(set(twins))
        self.twins = [distinct.index(row) for row in twins] if len(distinct) < len(twins) else None
        self.distinct = distinct
        self.rows: Tensor | None = None  # [R] whose keys and values the cache holds, in order
        self.cache = KVCache()

    def hidden(self, tokens: Tensor, rows: Tensor, at: Tensor, entering: Tensor) -> Tensor:
        """Hidden states that predict the active blocks.

        Args:
            tokens: ``[R, C]``.
            rows: ``[R]`` which of the B rows they are, ascending; a subset of the last call's.
            at: ``[R, K]`` the columns of each row's active block.
            entering: ``[R]`` bool, whether this is the row's first pass in that block.

        Returns:
            ``[R, K, d]``.
        """
        mask = None if self.attention_mask is None else self.attention_mask[rows]
        held, self.rows = self.rows, rows
        if held is None and self.twins is not None:
            return self._shared(tokens, mask, at)
        if self.kind == "none":
            return self.model.hidden(tokens, mask, at=at)
        if held is not None and len(held) > len(rows) and not entering.all():
            self.cache = self.cache.select(torch.searchsorted(held, rows))
        parts = [
            (index, self._cached(index, tokens, mask, at, window))
            for index, window in self._groups(tokens.shape[1], at, entering)
        ]
        if parts[0][0] is None:
            return parts[0][1]
        hidden = parts[0][1].new_empty(*at.shape, parts[0][1].shape[-1])
        for index, part in parts:
            hidden[index] = part
        return hidden

    def _shared(self, tokens: Tensor, mask: Tensor | None, at: Tensor) -> Tensor:
        """The first pass, over distinct rows."""
        distinct, twins = (torch.tensor(index, device=at.device) for index in (self.distinct, self.twins))
        cache = None if self.kind == "none" else KVCache()
        mask = None if mask is None else mask[distinct]
        hidden = self.model.hidden(tokens[distinct], mask, at=at[distinct], cache=cache)
        if cache is not None:
            self.cache = cache.select(twins)
        return hidden[twins]

    def _groups(
        self, columns: int, at: Tensor, entering: Tensor
    ) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """Rows that are computed together: their places ``[r]`` among the R (None for all of them), and their
        window ``[r, W]`` of columns (None for a full pass)."""
        staying = ~entering
        if entering.any():
            yield _places(entering), None
        if self.kind == "dual" and staying.any():
            yield _places(staying), at[staying]
        elif self.kind == "prefix":
            for start in at[staying, 0].unique().tolist():
                group = staying & (at[:, 0] == start)
                window = torch.arange(start, columns, device=at.device)
                yield _places(group), window.expand(int(group.sum()), -1)

    def _cached(
        self, places: Tensor | None, tokens: Tensor, mask: Tensor | None, at: Tensor, window: Tensor | None
    ) -> Tensor:
        """A full or a windowed pass over some rows, ``[r, K, d]``.

        The keys and values that a window pass writes are lost where it works on a copy of the cache: every
        later pass in the same block computes them again.
        """
        full = window is None
        if places is None:
            self.cache = cache = KVCache() if full else self.cache
            return self.model.hidden(tokens, mask, at=at, cache=cache, window=window)
        cache = KVCache() if full else self.cache.select(places)
        part = None if mask is None else mask[places]
        hidden = self.model.hidden(tokens[places], part, at=at[places], cache=cache, window=window)
        if full:
            self.cache.put(places, cache)
        return hidden


def _places(rows: Tensor) -> Tensor | None:
    """Where ``rows [R]`` is true; None for everywhere."""
    return None if rows.all() else rows.nonzero().squeeze(1)
