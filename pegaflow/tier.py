"""What users name in `module_path` of a tier of vLLM's own offloading: re-exports the tier."""

from pegaflow.connectors.vllm.offload.tier import PegaTier

__all__ = ["PegaTier"]
