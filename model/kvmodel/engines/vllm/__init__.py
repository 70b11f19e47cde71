"""How vLLM lays out its KV pool, by version."""

from kvmodel.engines.vllm.planning import plan

plan_pool = plan
"""The name by which it is known where no other engine is about."""

__all__ = ["plan", "plan_pool"]
