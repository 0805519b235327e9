"""The `vllm.general_plugins` entry point: makes `PegaKVConnector` known to vLLM by its name alone.

vLLM loads plugins in every process, so this imports nothing heavy: the connector's class is named,
and loaded only if it is asked for. It must never stop an engine that does not use it.
"""

from . import compat

CONNECTOR = "PegaKVConnector"


def register() -> None:
    """Register the connector with vLLM; harmless when repeated or impossible."""
    try:
        from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

        if CONNECTOR not in KVConnectorFactory._registry:
            KVConnectorFactory.register_connector(
                CONNECTOR, "pegaflow.connectors.vllm.connector", CONNECTOR
            )
    except (ImportError, AttributeError, ValueError) as error:
        compat.logger().warning("pegaflow: %s was not registered: %r", CONNECTOR, error)
