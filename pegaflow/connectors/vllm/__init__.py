"""The vLLM connector: a thin adapter over `pegaflow.client`.

`connector` is the class vLLM loads; `scheduler` and `worker` are its two halves; `requests`,
`namespace` and `layout` are pure; `compat` is the only file that knows vLLM by name. `offload` is
another way in: a tier below vLLM's own offloading.
"""
