"""The part of a score above the gate, where few transactions are: pure functions that TorchScript takes too.

They take and give features as rows and transactions as columns, as the score of `model.network` has them.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

LIKENESS: Final = 0.02
"""At this squared distance from a remembered row, as a share of its own squared length, a row keeps half of
what its score has above the gate."""
RARITY_WEIGHT: Final = 2e-4
"""Weight of the rarity beside the logarithm of what a score has above the gate. The figures hardly change
between 1e-4 and 1e-3."""
_LARGEST: Final = torch.finfo(torch.float32).max
_TINY: Final = torch.finfo(torch.float32).tiny


def compare(
    contributions: Tensor,
    whitened: Tensor,
    inputs: Tensor,
    is_scored: Tensor,
    gate: Tensor,
    memory: Tensor,
    mixture_whitening: Tensor,
    mixture_offset: Tensor,
    mixture_logs: Tensor,
    usual_rarity: Tensor,
    likeness: float = LIKENESS,
    rarity_weight: float = RARITY_WEIGHT,
    tiny: float = _TINY,
    largest: float = _LARGEST,
) -> tuple[Tensor, Tensor]:
    """Compares each transaction with the highest ones of the training.

    What its score has above the gate shrinks near the memory, and grows by its rarity and its logarithm; see
    `model.network.TransactionAutoencoder`.

    Args:
      contributions: [k, n].
      whitened: the whitened residuals [k, n].
      inputs: [n, k] in the units of the score.
      is_scored: [k], 1 for each input that is in the score, 0 for the others.
      gate: the score from which it counts, [].
      memory: [m, k], of whitened residuals.
      mixture_whitening: [m * c * k, k], of c components in each of m mixtures.
      mixture_offset: [m * c * k].
      mixture_logs: [m, c].
      usual_rarity: up to which no score grows, [].
      likeness: LIKENESS; TorchScript takes constants as defaults of parameters only.
      rarity_weight: RARITY_WEIGHT.
      tiny: the least normal float32.
      largest: the largest float32.

    Returns:
      Scores [n] and contributions [k, n].
    """
    # From here on transactions are rows: the sums of few columns would depend on how many there are.
    contributions, whitened = contributions.t().contiguous(), whitened.t().contiguous()
    squares = memory.square().sum(1) / 2
    nearest = torch.addmm(squares, whitened, memory.t(), alpha=-1.0).argmin(1)
    # Of the nearest row the difference itself is squared: that of two large squares would be rounding errors.
    distance = (whitened - memory.index_select(0, nearest)).square().sum(1)
    length = whitened.square().sum(1)
    kept = distance / (distance + likeness * length).clamp_min(tiny)
    score = contributions.sum(1)
    above = ((score - gate).clamp_min(0.0) * kept / gate).clamp_max(largest)
    rarity = _rarity(inputs * is_scored, mixture_whitening, mixture_offset, mixture_logs) - usual_rarity
    # The last factor lets the rarity in by and by: no score jumps at the gate.
    grown = above.log1p() + rarity_weight * rarity.clamp_min(0.0) * (above / (above + 1.0))
    compared = torch.where(score > gate, gate * (1.0 + grown), score)
    contributions = contributions * (compared / score.clamp_min(tiny))[:, None]
    return contributions.sum(1), contributions.t()


# In a trace this is a function of TorchScript, which keeps the branch: few rows pay for the comparison.
@torch.jit.script_if_tracing
def compare_above_gate(
    contributions: Tensor,
    whitened: Tensor,
    inputs: Tensor,
    is_scored: Tensor,
    gate: Tensor,
    memory: Tensor,
    mixture_whitening: Tensor,
    mixture_offset: Tensor,
    mixture_logs: Tensor,
    usual_rarity: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same for the transactions above the gate alone, in place; the result is that of all."""
    score = contributions.sum(0)
    is_high = score > gate
    if bool(is_high.any()):
        rows = is_high.nonzero()[:, 0]
        high, parts = compare(
            contributions.index_select(1, rows),
            whitened.index_select(1, rows),
            inputs.index_select(0, rows),
            is_scored,
            gate,
            memory,
            mixture_whitening,
            mixture_offset,
            mixture_logs,
            usual_rarity,
        )
        score.index_copy_(0, rows, high)
        contributions.index_copy_(1, rows, parts)
    return score, contributions


def _rarity(inputs: Tensor, whitening: Tensor, offset: Tensor, logs: Tensor) -> Tensor:
    """The mean negative log density [n] of inputs [n, k] under mixtures, see `model.mixtures.Mixtures`."""
    squares = torch.mm(inputs, whitening.t()).add_(offset).square_()
    densities = logs - squares.unflatten(1, (logs.shape[0], logs.shape[1], inputs.shape[1])).sum(3)
    # Opset 17 of ONNX has neither logsumexp nor mean as torch writes them.
    highest = densities.amax(2)
    # A density of e^-80 of the highest adds nothing, and to let it underflow takes four times as long.
    relative = (densities - highest[:, :, None]).clamp_min(-80.0).exp()
    return (highest + relative.sum(2).log()).sum(1) / -logs.shape[0]
