"""Recurrent layers: a state per sequence that does not grow. Element counts are those of one rank of a TP group.

Every kind states its convolution tail and its recurrent part apart, since engines keep the two in different types:
the tail in the model's 16 bits, the recurrent part in 32 (SGLang, transformers) or in 16 as well (vLLM's `auto`,
where the config names no type). Shapes: vLLM 0.32 `model_executor/layers/mamba/mamba_utils.py`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from kvmodel.dtypes import KvDtype
from kvmodel.errors import ModelError

CONV_BYTES = 2
"""Bytes of an element of the convolution tail: engines serve in 16 bits."""
RECURRENT_BYTES = 4
"""Bytes of an element of the recurrent part unless an engine or a config says otherwise."""


def share_of(elements: int, tp: int, what: str) -> int:
    """An even share. Raises ModelError (field `tp`) where there is none."""
    if tp < 1 or elements % tp:
        raise ModelError("tp", f"{tp} does not divide {elements} {what}")
    return elements // tp


class StateLayer(ABC):
    """A layer whose cache is a state of constant size."""

    __slots__ = ()

    @property
    def conv_columns(self) -> int:
        """Past inputs the convolution keeps, `kernel - 1`; 0 without one. transformers keeps one more."""
        return 0

    def conv_width(self, tp: int = 1) -> int:  # noqa: ARG002
        """Elements of one such input."""
        return 0

    @abstractmethod
    def recurrent_elements(self, tp: int = 1) -> int:
        """Elements of the recurrent part."""

    @property
    def recurrent_always_32bit(self) -> bool:
        """Whether vLLM's `auto` keeps the recurrent part in float32 although all else is in 16 bits."""
        return self.recurrent_only_32bit

    @property
    def recurrent_only_32bit(self) -> bool:
        """Whether no engine keeps the recurrent part in anything but float32."""
        return False

    def conv_elements(self, tp: int = 1) -> int:
        """Elements of the convolution tail."""
        return self.conv_width(tp) * self.conv_columns

    def state_bytes_as(self, *, conv_bytes: int, recurrent_bytes: int, tp: int = 1, more_columns: int = 0) -> int:
        """Bytes with these element sizes; `more_columns` further inputs kept (transformers 1, drafts of vLLM)."""
        columns = self.conv_columns + more_columns if self.conv_columns else 0
        if self.recurrent_only_32bit:
            recurrent_bytes = RECURRENT_BYTES
        return self.conv_width(tp) * columns * conv_bytes + self.recurrent_elements(tp) * recurrent_bytes

    def token_bytes(self, kv: KvDtype, tp: int = 1) -> int:  # noqa: ARG002
        return 0

    def growth_bytes_per_token(self, kv: KvDtype, tp: int = 1) -> int | float:  # noqa: ARG002
        return 0

    def window_bytes(self, kv: KvDtype, tp: int = 1) -> int:  # noqa: ARG002
        return 0

    def state_bytes(self, kv: KvDtype, tp: int = 1) -> int:  # noqa: ARG002
        return self.state_bytes_as(conv_bytes=CONV_BYTES, recurrent_bytes=RECURRENT_BYTES, tp=tp)

    def bytes_at(self, tokens: int, kv: KvDtype, tp: int = 1) -> int | float:  # noqa: ARG002
        return self.state_bytes(kv, tp)


@dataclass(frozen=True, slots=True)
class _Convolved(StateLayer):
    conv_kernel: int

    @property
    def conv_columns(self) -> int:
        return self.conv_kernel - 1


@dataclass(frozen=True, slots=True)
class Mamba1State(_Convolved):
    """Mamba (arXiv 2312.00752): `inner` channels with `state` elements each."""

    inner: int
    state: int

    def conv_width(self, tp: int = 1) -> int:
        return share_of(self.inner, tp, "channels")

    def recurrent_elements(self, tp: int = 1) -> int:
        return share_of(self.inner, tp, "channels") * self.state


@dataclass(frozen=True, slots=True)
class Mamba2State(_Convolved):
    """Mamba-2 (arXiv 2405.21060). Groups that `tp` does not divide are extended to one per rank (vLLM)."""

    heads: int
    head_dim: int
    state: int
    groups: int

    def conv_width(self, tp: int = 1) -> int:
        groups = self.groups if self.groups % tp == 0 else tp
        return share_of(self.heads * self.head_dim + 2 * groups * self.state, tp, "convolved channels")

    def recurrent_elements(self, tp: int = 1) -> int:
        return share_of(self.heads, tp, "state heads") * self.head_dim * self.state


@dataclass(frozen=True, slots=True)
class GatedDeltaNetState(_Convolved):
    """Gated DeltaNet (arXiv 2412.06464): queries, keys and values are convolved, one matrix per value head."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int

    def conv_width(self, tp: int = 1) -> int:
        return share_of(2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim, tp, "convolved channels")

    def recurrent_elements(self, tp: int = 1) -> int:
        return share_of(self.value_heads, tp, "state heads") * self.value_dim * self.key_dim


@dataclass(frozen=True, slots=True)
class KimiDeltaState(_Convolved):
    """Kimi Delta Attention (arXiv 2510.26692). vLLM keeps the matrices in float32 whatever the model's type."""

    heads: int
    head_dim: int

    def conv_width(self, tp: int = 1) -> int:
        return share_of(3 * self.heads * self.head_dim, tp, "convolved channels")

    def recurrent_elements(self, tp: int = 1) -> int:
        return share_of(self.heads, tp, "state heads") * self.head_dim * self.head_dim

    @property
    def recurrent_always_32bit(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class LightningState(StateLayer):
    """Lightning attention (arXiv 2501.08313): one matrix per head, no convolution."""

    heads: int
    head_dim: int

    def recurrent_elements(self, tp: int = 1) -> int:
        return share_of(self.heads, tp, "state heads") * self.head_dim * self.head_dim


@dataclass(frozen=True, slots=True)
class ShortConvState(_Convolved):
    """A short convolution and nothing else (LFM2)."""

    width: int

    def conv_width(self, tp: int = 1) -> int:
        return share_of(self.width, tp, "channels")

    def recurrent_elements(self, tp: int = 1) -> int:
        share_of(self.width, tp, "channels")
        return 0


@dataclass(frozen=True, slots=True)
class RgLruState(_Convolved):
    """The real-gated linear recurrence of Griffin (arXiv 2402.19427)."""

    width: int

    def conv_width(self, tp: int = 1) -> int:
        return share_of(self.width, tp, "channels")

    def recurrent_elements(self, tp: int = 1) -> int:
        return share_of(self.width, tp, "channels")


@dataclass(frozen=True, slots=True)
class RwkvState(StateLayer):
    """RWKV: the last input of each of two token shifts, and the recurrent part, always in float32.

    Version 4 keeps three vectors, later ones a matrix per head.
    """

    hidden: int
    recurrent: int

    @property
    def conv_columns(self) -> int:
        return 1

    def conv_width(self, tp: int = 1) -> int:
        return share_of(2 * self.hidden, tp, "channels")

    def recurrent_elements(self, tp: int = 1) -> int:
        return share_of(self.recurrent, tp, "state elements")

    @property
    def recurrent_only_32bit(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class MatrixState(StateLayer):
    """mLSTM (arXiv 2405.04517): per head a matrix, a normaliser and a maximum, always in float32."""

    heads: int
    key_dim: int
    value_dim: int

    def recurrent_elements(self, tp: int = 1) -> int:
        return share_of(self.heads, tp, "state heads") * (self.key_dim * self.value_dim + self.key_dim + 1)

    @property
    def recurrent_only_32bit(self) -> bool:
        return True
