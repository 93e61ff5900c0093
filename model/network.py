"""The autoencoder as one module: raw features in, the 13 fields of the contract and anomaly_score out.

Each step from a raw transaction to its score is a layer or a buffer of the module. So every server takes raw
features, and no two servers can differ in the preprocessing.
"""

from __future__ import annotations

import itertools
from typing import Final

import torch
from torch import Tensor, nn

from model.features import AMOUNT_INDEX, ENCODED_SIZE, N_FEATURES, TIME_INDEX
from model.outputs import ANOMALY_SCORE, ENCODED

LAYERS: Final = (N_FEATURES, 16, 8, ENCODED_SIZE)
"""Sizes from the input to the bottleneck; the decoder mirrors them."""

FLOAT32_MAX: Final = torch.finfo(torch.float32).max
INPUT_REACH: Final = 10.0
"""The network sees normalised features clamped to +-INPUT_REACH standard deviations. An extreme value so
cannot drag its own reconstruction along: it stays in the residual, where the score finds it."""
RESIDUAL_REACH: Final = 1e6
"""Normalised residuals saturate here, far past any real transaction, so that their squares stay finite."""


class TransactionAutoencoder(nn.Module):
    """Autoencoder 30-16-8-4-8-16-30 with normalisation, denormalisation and anomaly score inside.

    `forward` answers all 14 fields, `score` only what a pipeline needs. Both take raw float32 features
    [n, 30] in the order of `model.features.FEATURES`. A row's result does not depend on the other rows of its
    batch. Every finite input has finite outputs: what leaves the range of float32 saturates at its largest
    number.

    Time, and every feature that was constant in training, is hidden from the encoder and left out of the
    score: neither changes with it. Its reconstruction is about its mean.

    The score is taken of the residual: a row minus its reconstruction, the amount on a log scale. Its
    absolute size, feature by feature, orders ordinary transactions; the squared length of the whitened
    residual grows past it for rows that leave the planes which normals keep to. Both parts are sums of
    non-negative shares of the features, and these are the contributions; `model.whitening` fits them.
    """

    mean: Tensor
    std: Tensor
    center: Tensor
    whitening: Tensor
    absolute_weight: Tensor
    plain: Tensor
    is_amount: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _stack(LAYERS)
        self.decoder = _stack(LAYERS[::-1])
        self.register_buffer("mean", torch.zeros(N_FEATURES))
        self.register_buffer("std", torch.ones(N_FEATURES))
        self.register_buffer("center", torch.zeros(N_FEATURES))
        self.register_buffer("whitening", torch.eye(N_FEATURES))
        self.register_buffer("absolute_weight", torch.zeros(N_FEATURES))
        # Which features enter the score as they are, and which one on a log scale.
        position = torch.arange(N_FEATURES)
        self.register_buffer("plain", ((position != TIME_INDEX) & (position != AMOUNT_INDEX)).float())
        self.register_buffer("is_amount", (position == AMOUNT_INDEX).float())

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Sets the mean and the standard deviation [30] of the raw features; `std` must be positive."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def leave_out(self, mask: Tensor) -> None:
        """Leaves features out of encoder and score, as Time is; `mask` is bool [30]."""
        self.plain[mask] = 0.0
        self.is_amount[mask] = 0.0

    def set_whitening(self, center: Tensor, whitening: Tensor, absolute_weight: Tensor | None = None) -> None:
        """Sets the scale of the score; see `model.whitening.ScoreScale`.

        Args:
          center: [30], subtracted from the residual.
          whitening: [30, 30].
          absolute_weight: [30], non-negative; zeros when None.
        """
        self.center.copy_(center)
        self.whitening.copy_(whitening)
        self.absolute_weight.copy_(torch.zeros(N_FEATURES) if absolute_weight is None else absolute_weight)

    @property
    def is_scored(self) -> Tensor:
        """1 for each feature that is in the score and that the encoder sees, 0 for the others; [30]."""
        return self.plain + self.is_amount

    def normalize(self, x: Tensor) -> Tensor:
        """(x - mean) / std, [n, 30]."""
        return _saturate((x - self.mean) / self.std)

    def reconstruct(self, normalized: Tensor) -> tuple[Tensor, Tensor]:
        """Bottleneck [n, 4] and normalised reconstruction [n, 30] of normalised features."""
        encoded = self.encoder(self.visible(normalized))
        return encoded, self.decoder(encoded)

    def visible(self, normalized: Tensor) -> Tensor:
        """Normalised features [n, 30] as the encoder sees them: clamped, 0 for one that is left out."""
        return normalized.clamp(-INPUT_REACH, INPUT_REACH) * self.is_scored

    def score_residual(self, x: Tensor, normalized: Tensor, reconstruction: Tensor) -> Tensor:
        """The quantity that the score measures, [n, 30]: the normalised residual within +-RESIDUAL_REACH.

        The residual of the amount is taken on a log scale, and that of a feature that is left out is zero.
        """
        i = AMOUNT_INDEX
        amount = _log_amount(x[:, i]) - _log_amount(reconstruction[:, i] * self.std[i] + self.mean[i])
        residual = (normalized - reconstruction).clamp(-RESIDUAL_REACH, RESIDUAL_REACH)
        return residual * self.plain + amount.unsqueeze(1) * self.is_amount

    def _score(self, x: Tensor, normalized: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        deviation = self.score_residual(x, normalized, reconstruction) - self.center
        whitened = deviation @ self.whitening.T
        contributions = whitened.square() + deviation.abs() * self.absolute_weight
        return contributions.sum(1), contributions

    def score(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The cheap path of the pipelines.

        Args:
          x: raw features, float32 [n, 30].

        Returns:
          anomaly_score: float32 [n], the same values as in `forward`.
          encoded: float32 [n, 4].
          contributions: float32 [n, 30], non-negative; a row adds up to its anomaly_score.
        """
        normalized = self.normalize(x)
        encoded, reconstruction = self.reconstruct(normalized)
        anomaly_score, contributions = self._score(x, normalized, reconstruction)
        return anomaly_score, encoded, contributions

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """All 14 fields (`model.outputs.FIELDS`) of raw features x, float32 [n, 30].

        On both scales: `reconstruction` and `reconstruction_errors` (input minus reconstruction) [n, 30]. MAE
        and MSE [n] are the means over the features of the absolute and squared errors, RMSE the root of MSE.
        MSLE is the mean of (log1p(max(reconstruction, 0)) - log1p(max(input, 0)))^2.
        """
        normalized = self.normalize(x)
        encoded, reconstruction = self.reconstruct(normalized)
        anomaly_score, _ = self._score(x, normalized, reconstruction)
        fields = {ENCODED: encoded}
        fields.update(_errors("normalized", normalized, reconstruction))
        fields.update(_errors("denormalized", x, _saturate(reconstruction * self.std + self.mean)))
        fields[ANOMALY_SCORE] = anomaly_score
        return fields


def _stack(sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with a ReLU between two of them; bottleneck and output stay linear."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _saturate(x: Tensor) -> Tensor:
    return x.clamp(-FLOAT32_MAX, FLOAT32_MAX)


def _log_amount(x: Tensor) -> Tensor:
    """log1p of amounts, negative ones as 0 and infinite ones as float32's largest number."""
    return torch.log1p(x.clamp(0.0, FLOAT32_MAX))


def _errors(scale: str, x: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
    errors = _saturate(x - reconstruction)
    # Dividing before summing leaves nothing but rounding, and squares, to pass float32's largest number.
    mse = _saturate((errors.square() / N_FEATURES).sum(1))
    log_errors = torch.log1p(reconstruction.clamp_min(0.0)) - torch.log1p(x.clamp_min(0.0))
    return {
        f"{scale}_reconstruction": reconstruction,
        f"{scale}_reconstruction_errors": errors,
        f"{scale}_MAE": _saturate((errors.abs() / N_FEATURES).sum(1)),
        f"{scale}_RMSE": mse.sqrt(),
        f"{scale}_MSE": mse,
        f"{scale}_MSLE": (log_errors.square() / N_FEATURES).sum(1),
    }
