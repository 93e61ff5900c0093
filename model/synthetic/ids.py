"""Ids of transactions and other chance that is a function of a position alone."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that a multiplication by it maps words one to one; it spreads neighbours far apart."""
ULB_STREAM: Final = 3
CARD_STREAM: Final = 5
"""Streams of different kinds of data have other ids, also with the same seed."""


def mix(words: Words) -> Words:
    """Mixes words of 64 bits [n], one to one: the finish of SplitMix64 (Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = words ^ (words >> np.uint64(31))
    return mixed


def uniform(words: Words) -> npt.NDArray[np.float64]:
    """Turns mixed words [n] into numbers from 0 up to 1, without 1."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def transaction_ids(seed: int, index: npt.NDArray[np.int64], stream: int = ULB_STREAM) -> list[str]:
    """Makes ids of 32 hexadecimal digits for stream positions [n]; two positions never share an id."""
    words = np.empty((len(index), 2), dtype=">u8")
    base = np.random.SeedSequence([seed, stream]).generate_state(2, np.uint64)
    for column in range(2):
        words[:, column] = mix(index.astype(np.uint64) * GOLDEN + base[column])
    digits = words.tobytes().hex()
    return [digits[i : i + 32] for i in range(0, len(digits), 32)]
