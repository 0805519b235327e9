"""Which page size each extent is cut for, where only its pages tell: the first that fits decides,
and what is of another size is no page of it.
"""

import numpy as np
import numpy.typing as npt

from pegaflow.wire.layout import PAGE_ALIGN

from .geometry import MIN_PAGE, Geometry

Column = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Cuts:
    """The extents of a pool; at first nothing is known of any."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._sizes = np.zeros(geometry.extents, np.int64)  # 0: not known

    def fit(self, pages: Column, sizes: Column) -> Mask:
        """Which pages there are.

        Args:
            pages: page ids; any numbers.
            sizes: in bytes, beside `pages`; any numbers.
        """
        g = self._geometry
        fits: Mask = (pages >= 0) & (pages < g.records) & (sizes > 0) & (sizes % PAGE_ALIGN == 0)
        extents, slots = np.divmod(pages, g.records_per_extent)
        fits &= slots < g.extent_bytes // np.maximum(sizes, MIN_PAGE)
        there = np.flatnonzero(fits)
        met, first = np.unique(extents[there], return_index=True)
        new = self._sizes[met] == 0
        self._sizes[met[new]] = sizes[there[first[new]]]
        fits[there] = self._sizes[extents[there]] == sizes[there]
        return fits

    def of(self, extent: int) -> int:
        """The page size of an extent; 0: no page of it is known."""
        return int(self._sizes[extent])
