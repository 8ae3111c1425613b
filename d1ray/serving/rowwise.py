"""Linear layers that give a row the same bits whatever rows are computed with it.

A matrix product of another shape may add up in another order. ``F.linear`` folds rows and columns into one
product, whose shape changes with every row that joins; here each row is a product of its own, ``[L, d] x
[d, n]``, of a batch of them.

Everything else in the models (attention, norms, softmax) works row by row or element by element as it is. One
thing is in the way: PyTorch's SiLU rounds elements in the last, incomplete vector of a tensor otherwise than
those before. Where its width is a multiple of ``LANES`` there is no such vector.

Shapes: B rows, L columns, d width, n outputs.
"""

import torch
from torch import Tensor, nn

ACTIVATED = ("ff_proj", "gate_proj")  # the layers whose output goes through SiLU, of LLaDA and Dream
LANES = 64  # at most so many elements are computed at once, in any type on any CPU


class RowwiseLinear(nn.Linear):
    """``nn.Linear`` of ``[B, L, d]``, each of the B rows by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return rowwise_linear(x, self.weight, self.bias)


def rowwise_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [B, L, d]`` times ``weight [n, d]`` transposed, and ``bias [n]``: ``[B, L, n]``."""
    product = torch.bmm(x, weight.t().expand(len(x), -1, -1))
    return product if bias is None else product + bias


def rowwise_fault(model: nn.Module) -> str | None:
    """Why rows of ``model`` cannot be made independent of each other; None where they can."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(ACTIVATED) and module.out_features % LANES:
            return (
                f"{name} has {module.out_features} outputs; completions can be exactly the same in any batch "
                f"only where that is a multiple of {LANES}: leave exact out, or at false"
            )
    return None


def make_rowwise(model: nn.Module) -> None:
    """Has every linear layer of ``model`` compute rows by themselves; parameters and their names stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = RowwiseLinear
