"""The pixels that scenes are painted on. Coordinates are pixels, x to the right, y downwards, pixel centres at .5."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
ByteArray = NDArray[np.uint8]

IMAGE_SIZE = 96

_AXIS = np.arange(IMAGE_SIZE, dtype=np.float64) + 0.5
_GRID = np.meshgrid(_AXIS, _AXIS)
X: FloatArray = _GRID[0]
Y: FloatArray = _GRID[1]
