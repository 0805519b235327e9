"""Device work of a session for engines on GPUs, as jobs.py has the rest; gpu.py says what for."""

from .gpu import GpuMemory
from .jobs import Done, Job, Result
from .layout import Layout
from .message import message


@message(222)
class MapGpu(Job[Done]):
    """Open an engine's GPU memory under the number `mapping`.  COPY_FAILED: it cannot be had."""

    mapping: int
    layout: Layout
    memory: GpuMemory
    pid: int = 0  # of the engine's process, out of which descriptors of pieces are taken
    started_ticks: int = 0  # its start, in clock ticks since boot


@message(324)
class GpuWarmed(Result):
    """There is a context."""

    gpu: str  # the device, as gpu.spelled
    number: int = 0  # from 1 on in the order of the bus; 0: not known


@message(224)
class WarmGpu(Job[GpuWarmed | Done]):
    """Have a context on this GPU.  COPY_FAILED: there can be none."""

    gpu: str  # as gpu.device_name or gpu.spelled


@message(223)
class PinPages(Job[Done]):
    """Register this part of the pool with the driver.  COPY_FAILED: it refuses."""

    offset: int
    length: int
