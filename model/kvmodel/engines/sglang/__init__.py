"""SGLang's pools, by version."""

from kvmodel.engines.sglang.budget import available_kv_bytes, default_mem_fraction_static
from kvmodel.engines.sglang.pools import plan

__all__ = ["available_kv_bytes", "default_mem_fraction_static", "plan"]
