"""PegaFlow: an external KV-cache service for LLM inference that outlives the engines it serves.

The house, from the ground up (imports point down, and a test enforces it):

    wire      the language: messages, envelopes, nouns
    cache     pure data structures with verbs, no messages
    actors    who does what; pure but for the shell that runs them
    device    the only files that touch hardware
    client    what runs inside an engine, or any program
    vllm      the vLLM connector on top of the client
    replay    trace format and replay engine, `pegaflow demo`

Nothing is imported here: an engine that loads the connector pays for the connector only.
"""
