"""The coordinate-wise median: right while fewer than half of the agents are broken or hostile.

Yin et al. 2018, "Byzantine-robust distributed learning: towards optimal statistical rates", ICML,
arXiv 1803.01498, Definition 1 and Algorithm 1, option I.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from learning.aggregation.collected import Collected, CollectedSettings
from learning.registry import Settings
from learning.vector.parameters import F32, F64


class MedianSettings(CollectedSettings, frozen=True, tag="median"):
    """Settings of the median."""


class Median(Collected):
    """The middle value of each parameter, or the mean of the two middle ones; see `Collected`.

    Where agents' data differ, the median is not the mean even if all are honest: parameters that
    a few agents only have to learn from (rare classes) stay behind.
    """

    settings_type: ClassVar[type[Settings]] = MedianSettings

    def reduce_sorted(self, block: F32) -> F64:
        """See the class."""
        count = len(block)
        low, high = block[(count - 1) // 2], block[count // 2]
        middle: F64 = (low.astype(np.float64) + high) / 2
        return middle
