"""The autoencoder as one module: raw features in, the 13 fields of the contract and anomaly_score out.

Each step from a raw transaction to its score is a layer or a buffer of the module. So every server takes raw
features, and no two servers can differ in the preprocessing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from features.declaration import FeatureSpec
from features.default import ULB
from model.gate import compare, compare_above_gate
from model.outputs import ANOMALY_SCORE, ENCODED, encoded_size

HIDDEN: Final = (16 / 30, 8 / 30)
"""Sizes of the hidden layers as shares of the inputs: 30-16-8-4 for the default spec."""

FLOAT32_MAX: Final = torch.finfo(torch.float32).max
INPUT_REACH: Final = 10.0
"""The network sees normalised features clamped to +-INPUT_REACH standard deviations. An extreme value so
cannot drag its own reconstruction along: it stays in the residual, where the score finds it."""
RESIDUAL_REACH: Final = 1e6
"""Normalised residuals saturate here, far past any real transaction, so that their squares stay finite."""


class TransactionAutoencoder(nn.Module):
    """Autoencoder with normalisation, denormalisation and anomaly score inside; 30-16-8-4-8-16-30 for ULB.

    `forward` answers all 14 fields, `score` only what a pipeline needs. Both take the float32 inputs [n, k]
    of a feature spec, k = 30 for the default one. A row's result does not depend on the other rows of its
    batch. Every finite input has finite outputs: what leaves the range of float32 saturates at its largest
    number.

    An input that the spec keeps out of the score, and every one that was constant in training, is hidden from
    the encoder: encoding and score do not change with it. Its reconstruction is about its mean.

    The score has two parts, each on a log scale where the spec says so. The squared length of the whitened
    inputs orders ordinary transactions, and saturates. That of the whitened residual, a row minus its
    reconstruction, grows past it for rows that leave the planes which normals keep to. Both parts are sums of
    non-negative shares of the features, and these are the contributions; `model.whitening` fits them.

    The memory holds the training rows of the highest scores, and the gate is the lowest of these scores. What
    a score has above the gate shrinks near the memory: a normal that leaves the planes as an earlier one did
    falls below rows that leave them in their own way. It grows with the rarity of the inputs among the
    normals of high scores (`model.mixtures`); the rest of it is on a log scale.
    """

    memory: Tensor
    gate: Tensor
    mixture_whitening: Tensor
    mixture_offset: Tensor
    mixture_logs: Tensor
    usual_rarity: Tensor
    mean: Tensor
    std: Tensor
    offset: Tensor
    whitening: Tensor
    ordinary_offset: Tensor
    ordinary_whitening: Tensor
    ordinary_limit: Tensor
    plain: Tensor
    logs: Tensor

    def __init__(self, spec: FeatureSpec = ULB) -> None:
        super().__init__()
        self.n_inputs = n = len(spec.inputs)
        sizes = layers(n)
        self.encoder = _stack(sizes)
        self.decoder = _stack(sizes[::-1])
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("std", torch.ones(n))
        self.register_buffer("offset", torch.zeros(n))
        self.register_buffer("whitening", torch.eye(n))
        self.register_buffer("ordinary_offset", torch.zeros(n))
        self.register_buffer("ordinary_whitening", torch.zeros(n, n))
        self.register_buffer("ordinary_limit", torch.tensor(1.0))
        self.set_memory(torch.zeros(1, n), math.inf)
        self.set_mixtures(torch.zeros(n, n), torch.zeros(n), torch.zeros(1, 1))
        # Which inputs enter the score as they are, and for each of those on a log scale a row with its 1.
        is_scored, is_log = torch.tensor(spec.is_scored), torch.tensor(spec.is_log)
        self._logs: list[int] = (is_scored & is_log).nonzero()[:, 0].tolist()
        self.register_buffer("plain", (is_scored & ~is_log).float())
        self.register_buffer("logs", torch.eye(n)[self._logs])

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Sets the mean and the standard deviation [k] of the raw inputs; `std` must be positive."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def leave_out(self, mask: Tensor) -> None:
        """Leaves inputs out of encoder and score; `mask` is bool [k]."""
        self.plain[mask] = 0.0
        self.logs[:, mask] = 0.0

    def set_whitening(self, center: Tensor, whitening: Tensor) -> None:
        """Sets the form of the residual; see `model.whitening.ScoreScale`.

        Args:
          center: [k], subtracted from the residual.
          whitening: [k, k].
        """
        self.whitening.copy_(whitening)
        self.offset.copy_(-(whitening @ center))

    def set_ordinary(self, center: Tensor, whitening: Tensor, limit: float) -> None:
        """Sets the form of the inputs.

        Args:
          center: [k], subtracted from the inputs.
          whitening: [k, k].
          limit: positive, at which the form saturates.
        """
        self.ordinary_whitening.copy_(whitening)
        self.ordinary_offset.copy_(-(whitening @ center))
        self.ordinary_limit.fill_(limit)

    def set_memory(self, memory: Tensor, gate: float) -> None:
        """Sets the training rows that scores above the gate are compared with.

        Args:
          memory: [m, k] with m > 0, of `whiten`.
          gate: the score from which they count.
        """
        self.register_buffer("memory", memory.float())
        self.register_buffer("gate", torch.tensor(gate))

    def set_mixtures(self, whitening: Tensor, offset: Tensor, logs: Tensor, usual: float = 0.0) -> None:
        """Sets the mixtures that make the rarity of rows above the gate; see `model.mixtures.Mixtures`.

        Args:
          whitening: [m * c * k, k], of c components in each of m mixtures.
          offset: [m * c * k].
          logs: [m, c].
          usual: the rarity up to which no score grows.
        """
        self.register_buffer("mixture_whitening", whitening.float())
        self.register_buffer("mixture_offset", offset.float())
        self.register_buffer("mixture_logs", logs.float())
        self.register_buffer("usual_rarity", torch.tensor(usual))

    @property
    def is_scored(self) -> Tensor:
        """1 for each input that is in the score and that the encoder sees, 0 for the others; [k]."""
        return self.plain + self.logs.sum(0)

    def normalize(self, x: Tensor) -> Tensor:
        """(x - mean) / std, [n, k]."""
        return _saturate(self._standardised(x))

    def _standardised(self, x: Tensor) -> Tensor:
        return (x - self.mean).div_(self.std)

    def reconstruct(self, normalized: Tensor) -> tuple[Tensor, Tensor]:
        """Bottleneck and normalised reconstruction [n, k] of normalised inputs."""
        encoded = self.encoder(self.visible(normalized))
        return encoded, self.decoder(encoded)

    def visible(self, normalized: Tensor) -> Tensor:
        """Normalised inputs [n, k] as the encoder sees them: clamped, 0 for one that is left out."""
        return normalized.clamp(-INPUT_REACH, INPUT_REACH) * self.is_scored

    def scaled(self, x: Tensor, normalized: Tensor) -> Tensor:
        """Raw inputs [n, k] in the units of the score: normalised, within +-RESIDUAL_REACH.

        Some have theirs on a log scale, and that of an input that is left out is zero.
        """
        return self._scaled(x, normalized) * self.is_scored

    def _scaled(self, x: Tensor, normalized: Tensor) -> Tensor:
        """The same, a new tensor in which inputs that are left out have their values."""
        values = normalized.clamp(-RESIDUAL_REACH, RESIDUAL_REACH)
        # Column by column: few inputs have a log scale, and a logarithm of all of them would cost the most.
        for i in self._logs:
            values.narrow(1, i, 1).copy_(_log_amount(x.narrow(1, i, 1)))
        return values

    def residual(self, inputs: Tensor, reconstruction: Tensor) -> Tensor:
        """Inputs [n, k] of `scaled` minus their reconstruction, which is normalised."""
        residual = torch.addcmul(inputs, reconstruction, self.plain, value=-1.0)
        for row, i in enumerate(self._logs):
            amount = reconstruction.narrow(1, i, 1) * self.std[i] + self.mean[i]
            residual = torch.addcmul(residual, _log_amount(amount), self.logs[row], value=-1.0)
        return residual

    def _judge(self, x: Tensor, normalized: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The outputs of `score`, and the last hidden layer [m, n].

        Features are rows here and transactions columns: the products of narrow layers, and the operators
        between them, then run along long rows, which takes half the time. Inputs that are left out have
        weights of zero, and the score needs no reconstruction but that of amounts: its last layer is part of
        the whitening. All this leaves the results as they are, up to rounding.
        """
        (weight, bias), *layers = _parameters(self.encoder)
        visible = normalized.clamp(-INPUT_REACH, INPUT_REACH).t()
        encoded = _by_columns([(weight * self.is_scored, bias), *layers], visible)
        *layers, (weight, bias) = _parameters(self.decoder)
        hidden = _by_columns(layers, encoded).relu_()
        inputs = self._scaled(x, normalized)
        whitened = self._whitened(inputs, hidden, weight, bias)
        ordinary = _affine(self.ordinary_whitening * self.is_scored, inputs.t(), self.ordinary_offset)
        ordinary = ordinary.square_()
        saturated = (self.ordinary_limit / ordinary.sum(0)).clamp_max(1.0)
        contributions = ordinary.mul_(saturated).addcmul_(whitened, whitened)
        # An exported graph has no branches: there each row is compared, with the same result.
        comparison = compare if torch.compiler.is_compiling() else compare_above_gate
        anomaly_score, contributions = comparison(
            contributions,
            whitened,
            inputs,
            self.is_scored,
            self.gate,
            self.memory,
            self.mixture_whitening,
            self.mixture_offset,
            self.mixture_logs,
            self.usual_rarity,
        )
        return anomaly_score, encoded.t().contiguous(), contributions.t(), hidden

    def _whitened(self, inputs: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The whitened residual [k, n] of inputs [n, k] and the reconstruction that a last layer makes."""
        if self._logs:
            inputs = inputs.clone()
        # Whitened each by itself, two logarithms that are nearly the same would leave rounding errors.
        for i in self._logs:
            amount = _affine(weight[i : i + 1], hidden, bias[i : i + 1]) * self.std[i] + self.mean[i]
            inputs.narrow(1, i, 1).sub_(_log_amount(amount).t())
        plain = self.whitening * self.plain
        whitened = torch.mm(self.whitening * self.is_scored, inputs.t()).addmm_(-(plain @ weight), hidden)
        return whitened.add_((self.offset - plain @ bias)[:, None])

    def whiten(self, x: Tensor) -> Tensor:
        """The whitened residual of raw inputs x [n, k], by whose squares and distances a row is judged."""
        normalized = self.normalize(x)
        reconstruction = self.reconstruct(normalized)[1]
        residual = self.residual(self.scaled(x, normalized), reconstruction)
        return torch.addmm(self.offset, residual, self.whitening.t())

    def score(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The cheap path of the pipelines.

        Args:
          x: raw inputs, float32 [n, k].

        Returns:
          anomaly_score: float32 [n], the same values as in `forward`.
          encoded: float32 [n, encoded_size(k)].
          contributions: float32 [n, k], non-negative; a row adds up to its anomaly_score.
        """
        anomaly_score, encoded, contributions, _ = self._judge(x, self._standardised(x))
        return anomaly_score, encoded, contributions.contiguous()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """All 14 fields (`model.outputs.FIELDS`) of raw inputs x, float32 [n, k].

        On both scales: `reconstruction` and `reconstruction_errors` (input minus reconstruction) [n, k]. MAE
        and MSE [n] are the means over the inputs of the absolute and squared errors, RMSE the root of MSE.
        MSLE is the mean of (log1p(max(reconstruction, 0)) - log1p(max(input, 0)))^2.
        """
        normalized = self.normalize(x)
        anomaly_score, encoded, _, hidden = self._judge(x, normalized)
        reconstruction = self.decoder[-1](hidden.t())
        denormalized = _saturate(reconstruction * self.std + self.mean)
        fields = {ENCODED: encoded}
        fields.update(_errors("normalized", self.n_inputs, normalized, reconstruction))
        fields.update(_errors("denormalized", self.n_inputs, x, denormalized))
        fields[ANOMALY_SCORE] = anomaly_score
        return fields


def layers(n_inputs: int) -> tuple[int, ...]:
    """Returns the sizes of the layers from the inputs to the bottleneck; the decoder mirrors them.

    >>> layers(30), layers(9)
    ((30, 16, 8, 4), (9, 5, 3, 2))
    """
    narrowest = encoded_size(n_inputs)
    hidden = (max(narrowest, math.ceil(share * n_inputs)) for share in HIDDEN)
    return (n_inputs, *hidden, narrowest)


class _Linear(nn.Linear):
    """A linear layer whose transposed weights become a constant of a frozen graph."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight.t())


def _stack(sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with a ReLU between two of them; bottleneck and output stay linear."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [_Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _affine(weight: Tensor, columns: Tensor, bias: Tensor) -> Tensor:
    return torch.mm(weight, columns).add_(bias[:, None])


def _parameters(stack: nn.Sequential) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of the layers."""
    return [(layer.weight, layer.bias) for layer in stack if isinstance(layer, nn.Linear)]


def _by_columns(layers: Sequence[tuple[Tensor, Tensor]], columns: Tensor) -> Tensor:
    """Runs layers with a ReLU between two of them on inputs [k, n]."""
    for weight, bias in layers[:-1]:
        columns = _affine(weight, columns, bias).relu_()
    return _affine(layers[-1][0], columns, layers[-1][1])


def _saturate(x: Tensor) -> Tensor:
    return x.clamp(-FLOAT32_MAX, FLOAT32_MAX)


def _log_amount(x: Tensor) -> Tensor:
    """log1p of amounts, negative ones as 0 and infinite ones as float32's largest number."""
    return torch.log1p(x.clamp(0.0, FLOAT32_MAX))


def _errors(scale: str, n: int, x: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
    errors = _saturate(x - reconstruction)
    # Dividing before summing leaves nothing but rounding, and squares, to pass float32's largest number.
    mse = _saturate((errors.square() / n).sum(1))
    log_errors = torch.log1p(reconstruction.clamp_min(0.0)) - torch.log1p(x.clamp_min(0.0))
    return {
        f"{scale}_reconstruction": reconstruction,
        f"{scale}_reconstruction_errors": errors,
        f"{scale}_MAE": _saturate((errors.abs() / n).sum(1)),
        f"{scale}_RMSE": mse.sqrt(),
        f"{scale}_MSE": mse,
        f"{scale}_MSLE": (log_errors.square() / n).sum(1),
    }
