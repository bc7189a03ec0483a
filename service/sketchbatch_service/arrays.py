"""Name the two array types that pass through the service."""

import numpy as np
from numpy.typing import NDArray

Bitmaps = NDArray[np.uint8]  # (rows, 28, 28), 0 = paper, 255 = ink
Scores = NDArray[np.float32]  # (rows, classes), a higher score is a better match

ROW_SHAPE = (28, 28)
ROW_BYTES = 784  # of one row on the wire: 28 x 28 uint8
