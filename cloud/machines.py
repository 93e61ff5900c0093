"""The machine types that carry each type of GPU."""

from __future__ import annotations

import re
from typing import Final

from common.options import OptionError

# G2, A2 and A3 machines come with their GPUs, so that the count says which type it is; the older GPUs are
# attached to N1 machines of any size.
_BUILT_IN: Final[dict[str, dict[int, tuple[str, ...]]]] = {
    "nvidia-l4": {
        1: tuple(f"g2-standard-{cores}" for cores in (4, 8, 12, 16, 32)),
        2: ("g2-standard-24",),
        4: ("g2-standard-48",),
        8: ("g2-standard-96",),
    },
    "nvidia-tesla-a100": {
        **{count: (f"a2-highgpu-{count}g",) for count in (1, 2, 4, 8)},
        16: ("a2-megagpu-16g",),
    },
    "nvidia-a100-80gb": {count: (f"a2-ultragpu-{count}g",) for count in (1, 2, 4, 8)},
    "nvidia-h100-80gb": {count: (f"a3-highgpu-{count}g",) for count in (1, 2, 4, 8)},
    "nvidia-h100-mega-80gb": {8: ("a3-megagpu-8g",)},
}
_ATTACHED: Final = {
    "nvidia-tesla-t4": (1, 2, 4),
    "nvidia-tesla-p4": (1, 2, 4),
    "nvidia-tesla-p100": (1, 2, 4),
    "nvidia-tesla-v100": (1, 2, 4, 8),
}
_N1: Final = re.compile(r"n1-\w+-\d+|custom-\d+-\d+")


def machine_for(gpu: str, given: str | None) -> str:
    """Chooses the machine type for --gpu: the given one, or the smallest that carries the GPUs.

    Args:
      gpu: TYPE or TYPE:COUNT.
      given: --machine_type.

    Raises:
      OptionError: there is none, or the given one does not carry the GPUs.

    >>> machine_for("nvidia-l4:2", None)
    'g2-standard-24'
    """
    kind, _, number = gpu.partition(":")
    count = int(number or 1)
    counts = _BUILT_IN.get(kind) or _ATTACHED.get(kind)
    if counts is None:
        if given:  # a GPU that is newer than this table
            return given
        known = ", ".join([*_BUILT_IN, *_ATTACHED])
        raise OptionError(f"--gpu: expected one of {known}, or a --machine_type with it, got {gpu!r}")
    if count not in counts:
        raise OptionError(f"--gpu: expected {', '.join(map(str, counts))} of {kind}, got {gpu!r}")
    if kind in _ATTACHED:
        if given and not _N1.fullmatch(given):
            raise OptionError(
                f"--machine_type: expected one of N1 for {kind}, such as n1-standard-4, got {given!r}"
            )
        return given or "n1-standard-4"
    fitting = _BUILT_IN[kind][count]
    if given and given not in fitting:
        raise OptionError(
            f"--machine_type: expected {' or '.join(fitting)} for {count} {kind}, got {given!r}"
        )
    return given or fitting[0]
