"""Models without weights: shapes alone, to be filled from a file or compared with one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch.overrides import TorchFunctionMode


@contextmanager
def empty_weights() -> Iterator[None]:
    """Modules made in the block have parameters on the meta device, which nobody draws; buffers are real."""
    with init_empty_weights(), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Leaves out ``torch.nn.init``: on the meta device it imports torch's compiler, a second of CPU."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))
