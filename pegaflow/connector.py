"""What users name in `kv_connector_module_path`: re-exports the vLLM connector."""

from pegaflow.connectors.vllm.connector import PegaKVConnector

__all__ = ["PegaKVConnector"]
