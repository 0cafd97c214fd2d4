"""The coordinate-wise trimmed mean: right while no more agents are hostile than are trimmed.

Yin et al. 2018, "Byzantine-robust distributed learning: towards optimal statistical rates", ICML,
arXiv 1803.01498, Definition 2 and Algorithm 1, option II.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta

from learning.aggregation.collected import Collected, CollectedSettings
from learning.registry import Settings
from learning.vector.parameters import F32, F64


class TrimmedMeanSettings(CollectedSettings, frozen=True, tag="trimmed_mean"):
    """Settings of the trimmed mean.

    Attributes:
        fraction: β, of the updates left out at each end of each parameter; at least the share of
            hostile agents that has to be withstood.
    """

    fraction: Annotated[float, Meta(ge=0, lt=0.5)] = 0.2


class TrimmedMean(Collected):
    """The mean without the ⌊β n⌋ smallest and ⌊β n⌋ largest values; see `Collected`.

    At least one value is always left, as β is below 1/2. A cohort of fewer than 1 / β updates is
    not trimmed at all: it gets the plain mean, and one hostile agent decides.
    """

    settings_type: ClassVar[type[Settings]] = TrimmedMeanSettings

    def __init__(self, settings: TrimmedMeanSettings, sizes: Mapping[str, int]) -> None:
        super().__init__(settings, sizes)
        self._fraction = settings.fraction

    def reduce_sorted(self, block: F32) -> F64:
        """See the class."""
        count = len(block)
        # 0.29 × 100 is 28.999999999999996 in float64 and means 29.
        cut = min(int(self._fraction * count + 1e-9), (count - 1) // 2)
        mean: F64 = block[cut : count - cut].mean(axis=0, dtype=np.float64)
        return mean
