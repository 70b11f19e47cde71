"""As much of torch as the agent looks at: tensors with shapes and storages, and no numbers in them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any


class Storage:
    def __init__(self, nbytes: int, device: str) -> None:
        self._nbytes = nbytes
        self._cdata = id(self)
        self.device = SimpleNamespace(type=device)

    def nbytes(self) -> int:
        return self._nbytes


class Tensor:
    def __init__(self, *shape: int, device: str = "cuda", itemsize: int = 2, slack_bytes: int = 0) -> None:
        self.shape = shape
        self.ndim = len(shape)
        self.device = SimpleNamespace(type=device)
        self._itemsize = itemsize
        self._storage = Storage(self.numel() * itemsize + slack_bytes, device)

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel() * self._itemsize

    def untyped_storage(self) -> Storage:
        return self._storage

    def item(self) -> int:
        raise AssertionError("a tensor on the device was read")


class HostNumber(Tensor):
    """A number in host memory; it must pass for a plain tensor."""

    def __new__(cls, value: int) -> Any:
        made = Tensor(device="cpu", itemsize=8)
        vars(made)["item"] = lambda: value
        return made


class TracedTensor(Tensor):
    """Stands for another tensor while a compiler traces."""

    @property
    def shape(self) -> tuple[int, ...]:
        raise AssertionError("the size of a traced tensor was looked at")

    @shape.setter
    def shape(self, value: tuple[int, ...]) -> None:
        del value

    def numel(self) -> int:
        return 0


class WrappingTensor(Tensor):
    """A tensor made of others, as of quantized numbers and their scales."""

    def __init__(self, *shape: int, parts: dict[str, Tensor]) -> None:
        super().__init__(*shape)
        self._names = list(parts)
        vars(self).update(parts)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return self._names, None


def module(compiling: bool = False) -> Any:
    """What goes into `sys.modules`."""
    return SimpleNamespace(
        Tensor=Tensor,
        nn=SimpleNamespace(Parameter=type("Parameter", (Tensor,), {})),
        compiler=SimpleNamespace(is_compiling=lambda: compiling),
        __version__="2.13.0",
    )
