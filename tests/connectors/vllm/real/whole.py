"""The connector, which serves latent attention where it would be off: on a CPU without AMX. Named
as `kv_connector_module_path`; for prompts that are found up to their last token (test_latent.py).
"""

from pegaflow.connectors.vllm import kvgroups
from pegaflow.connectors.vllm.connector import PegaKVConnector

__all__ = ["PegaKVConnector"]

vars(kvgroups)["_computes_whole_prompts"] = lambda _: False
