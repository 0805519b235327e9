"""A tier below vLLM's own offloading (`vllm/v1/kv_offload/tiering`, 0.33).

vLLM copies blocks from the GPU to chunks of its own host memory, and from there to the tiers below
it, by key. `tier` is the class that it loads; `carrier` is the thread that moves the bytes,
`verdicts` is what is known of the keys that requests have asked for, `identity` says who may
exchange chunks, and `contract` is the only file that knows vLLM's tiering by name.
"""
