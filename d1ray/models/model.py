"""DiffusionLM: what samplers, likelihoods and trainers know of a masked diffusion language model.

Shapes: B rows, L columns, K predicted columns, W columns computed with a cache, d model width,
V vocabulary.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from d1ray.models.cache import KVCache
from d1ray.models.columns import Columns
from d1ray.models.config import DiffusionConfig
from d1ray.models.layers import Scope, rotary_angles


class DiffusionLM(nn.Module):
    """A bidirectional transformer that predicts masked tokens; the base of LLaDA and Dream.

    ``forward`` gives logits aligned to positions. Samplers and likelihoods use ``hidden`` and ``head``,
    so that the vocabulary projection runs only where it is needed.

    Attributes:
        config: sizes and special tokens.
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its
            activations.
    """

    config: DiffusionConfig
    gradient_checkpointing: bool = False
    shifted: bool = False  # the output at column i - 1 predicts token i

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings ``[B, L, d]``."""
        raise NotImplementedError

    def blocks(self) -> Iterable[nn.Module]:
        """The transformer blocks in order; each is called with hidden states and a ``Scope``."""
        raise NotImplementedError

    def norm(self, x: Tensor) -> Tensor:
        """The final norm."""
        raise NotImplementedError

    @property
    def head_weight(self) -> Tensor:
        """The vocabulary projection ``[V, d]``; the embeddings where weights are tied."""
        raise NotImplementedError

    def head(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of hidden states ``[..., d]``."""
        return F.linear(hidden, self.head_weight)

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        at: Tensor | None = None,
        cache: KVCache | None = None,
        window: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states, normed: ``head(hidden)[b, k]`` predicts token ``input_ids[b, at[b, k]]``.

        Without a cache, or with an empty one, the whole sequence is computed, and an empty cache is
        filled. Only the last block's queries and MLP are restricted to ``at``: an exact saving.

        With a filled cache and ``at`` only the columns ``window`` are computed; they overwrite their cached
        keys and values and attend to all columns. The tokens elsewhere count as they were when they were
        last computed. With a filled cache and no ``at`` the whole sequence is computed again.

        Args:
            input_ids: ``[B, L]``.
            attention_mask: ``[B, L]``, 0 at padding, or None when nothing is padded; or ``[B, L, L]`` bool,
                which columns (last) each column attends to: with ``position_ids``, and without a cache.
            position_ids: ``[B, L]``; by default positions count the tokens that are not padding,
                so a left-padded row equals the same row unpadded.
            at: ``[B, K]`` columns to predict; None for all L.
            cache: for inference only.
            window: ``[B, W]`` columns to compute with a filled cache: a range per row that contains
                ``at``. By default ``at``, which must then be such a range. The prefix cache of
                Fast-dLLM is the active block and all after it, the dual cache the block alone.

        Returns:
            ``[B, K, d]``.

        Raises:
            ValueError: ``input_ids`` has more columns than the model's context, a filled cache holds other
                rows or columns than it has, gradients are to flow through a cache, ``window`` is given
                without a filled cache or without ``at``, or ``attention_mask [B, L, L]`` without
                ``position_ids`` or with a cache.
        """
        length, context = input_ids.shape[1], self.config.max_sequence_length
        if length > context:
            raise ValueError(
                f"the input has {length} columns, more than the model's max_sequence_length={context}; "
                f"shorten the prompts or the completions"
            )
        if cache is not None:
            self._check_cache(cache, input_ids)
        if window is not None and (cache is None or not cache.filled or at is None):
            raise ValueError(
                "window says what to compute with a filled cache, for columns at: give all three"
            )
        pairwise = attention_mask is not None and attention_mask.dim() == 3
        if pairwise and (position_ids is None or cache is not None):
            raise ValueError("an attention_mask [B, L, L] needs position_ids, and goes without a cache")
        if position_ids is None:
            if attention_mask is None:
                position_ids = torch.arange(length, device=input_ids.device)[None]
            else:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        first = None  # [B, 1], the first column that is not padding
        if self.shifted and attention_mask is not None and not pairwise:
            first = attention_mask.long().argmax(-1, keepdim=True)
        columns, queries = None, None
        if cache is not None and cache.filled and at is not None:
            window = at if window is None else window
            queries = None if window is at and not self.shifted else Columns(at - window[:, :1])
            window = self._with_predecessor(window, first)
            columns = Columns(window)
            input_ids, position_ids = columns.take(input_ids), columns.take(position_ids)
        elif at is not None:
            queries = Columns(self._source(at, first))
        cos, sin = rotary_angles(position_ids, self.config.head_size, self.config.rope_theta)
        mask = None
        if attention_mask is not None:
            mask = attention_mask.bool()[:, None] if pairwise else attention_mask.bool()[:, None, None]
        x = self.embed(input_ids)
        for layer, block in enumerate(self.blocks()):
            last = layer == self.config.n_layers - 1
            scope = Scope(cos, sin, mask, queries if last else None, layer, cache, columns)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, scope, use_reentrant=False)
            else:
                x = block(x, scope)
        x = self.norm(x)
        if at is None and self.shifted:
            every = torch.arange(length, device=x.device)[None]
            x = Columns(self._source(every, first)).take(x)
        return x

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Logits ``[B, L, V]`` aligned to positions; arguments as in ``hidden``."""
        return self.head(self.hidden(input_ids, attention_mask, position_ids))

    def _source(self, at: Tensor, first: Tensor | None) -> Tensor:
        """The columns whose outputs predict the columns ``at``; a row's first token predicts itself."""
        if not self.shifted:
            return at
        return (at - 1).clamp(min=0) if first is None else torch.maximum(at - 1, first)

    def _with_predecessor(self, window: Tensor, first: Tensor | None) -> Tensor:
        """The columns to compute so that every column of ``window`` has its source."""
        return torch.cat([self._source(window[:, :1], first), window], dim=1) if self.shifted else window

    def _check_cache(self, cache: KVCache, input_ids: Tensor) -> None:
        if torch.is_grad_enabled():
            raise ValueError("a cache is for inference: use it under torch.no_grad or inference_mode")
        if cache.filled and cache.shape != tuple(input_ids.shape):
            raise ValueError(
                f"the cache holds {cache.shape[0]} rows of {cache.shape[1]} columns, the input has "
                f"{input_ids.shape[0]} rows of {input_ids.shape[1]}"
            )
