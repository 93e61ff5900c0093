"""Fits the autoencoder to normal transactions: normalisation, weights, whitening of the score."""

from __future__ import annotations

import copy
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.options import OptionError, option
from common.output import track
from common.values import SHARE, at_least
from features.declaration import FeatureSpec
from features.default import ULB
from model import mixtures, whitening
from model.data import SplitBy
from model.dataset import DataError
from model.network import TransactionAutoencoder
from model.threads import one_thread
from model.thresholds import ALERT_BUDGETS

UNLABELLED_TRIM: Final = 0.01
"""Share of the rows left out of the second fit where no label marks the frauds."""
ROWS_AT_ONCE: Final = 8192
REMEMBERED_SHARE: Final = 0.01
"""Share of the training rows, those that score highest, that the network remembers. Later rows that score as
high are compared with them. Between 0.25 and 4 % the figures hardly change."""


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the training.

    Attributes:
      epochs: passes over the training rows at most.
      patience: epochs without a better validation loss after which training stops.
      batch_size: rows a step.
      learning_rate: of Adam.
      seed: of the initial weights and the order of rows.
      trim: share of the rows that are left out after a first fit, the ones that it scores highest; the
        network is then fitted again. For data without labels, whose frauds would otherwise be learnt.
      split: how rows come into the three parts, see `model.data.split`; None for what suits the features.
      medium_budget, high_budget: shares of normals that may reach each severity.
    """

    epochs: int = option(
        120,
        type=at_least(1),
        metavar="N",
        help="passes over the training rows at most (default: %(default)s)",
    )
    patience: int = 15
    batch_size: int = 256
    learning_rate: float = 3e-3
    seed: int = 0
    trim: float = 0.0
    split: SplitBy | None = option(
        None,
        help="how rows come into the training, validation and test parts: time trains on the earliest rows "
        "and tests on the latest (default: time for features with a history, otherwise random)",
    )
    medium_budget: float = option(
        ALERT_BUDGETS["medium"],
        type=SHARE,
        metavar="SHARE",
        help="share of normal transactions that may reach severity medium (default: %(default)s)",
    )
    high_budget: float = option(
        ALERT_BUDGETS["high"],
        type=SHARE,
        metavar="SHARE",
        help="share of normal transactions that may reach severity high (default: %(default)s)",
    )

    def __post_init__(self) -> None:
        if not 0 < self.high_budget < self.medium_budget < 1:
            raise OptionError(
                "--high_budget, --medium_budget: expected shares above 0 and below 1, the first the smaller, "
                f"got {self.high_budget} and {self.medium_budget}"
            )

    @property
    def budgets(self) -> dict[str, float]:
        """The alert budget of each severity."""
        return {"medium": self.medium_budget, "high": self.high_budget}

    def suited_to(self, labelled: bool, spec: FeatureSpec = ULB) -> TrainingOptions:
        """Adds a share to trim where no label marks the frauds, and the split that suits the features.

        A history of the test part continues that of the training part: a random split would put rows into
        the training part whose history has rows of the test part.
        """
        trim = self.trim if labelled or self.trim else UNLABELLED_TRIM
        return replace(self, trim=trim, split=self.split or usual_split(spec))


def usual_split(spec: FeatureSpec) -> SplitBy:
    """Returns how rows are split unless an option says it."""
    return "time" if spec.history else "random"


@dataclass(frozen=True)
class Fitted:
    """A fitted network and the course of its training."""

    network: TransactionAutoencoder
    history: dict[str, Any]


@one_thread()
def fit(
    train: npt.NDArray[np.float32],
    validation: npt.NDArray[np.float32],
    options: TrainingOptions | None = None,
    progress: bool = True,
    spec: FeatureSpec = ULB,
) -> Fitted:
    """Fits a network to normal transactions.

    Args:
      train: raw inputs, float32 [n, k]; weights, normalisation and whitening are learnt from them.
      validation: raw inputs, float32 [m, k], for early stopping.
      options: the defaults when None.
      progress: show a progress bar.
      spec: of the inputs.

    Returns:
      The network with the weights of the best validation loss, in eval mode.
    """
    options = options or TrainingOptions()
    rows, held_out = torch.from_numpy(train), torch.from_numpy(validation)
    network, history = _fit_once(rows, held_out, options, progress, spec)
    if options.trim > 0:
        scores = _scores(network, rows)
        limit = torch.quantile(scores.double(), 1.0 - options.trim)
        kept, kept_held_out = rows[scores < limit], held_out[_scores(network, held_out) < limit]
        network, history = _fit_once(kept, kept_held_out, options, progress, spec)
        history["rows_trimmed"] = len(rows) - len(kept)
    else:  # without labels, the highest rows would be frauds, which later ones are like
        _compare_with(network, rows, options.seed)
    return Fitted(network.eval(), {**asdict(options), **history})


def _fit_once(
    rows: Tensor, held_out: Tensor, options: TrainingOptions, progress: bool, spec: FeatureSpec
) -> tuple[TransactionAutoencoder, dict[str, Any]]:
    torch.manual_seed(options.seed)
    network = TransactionAutoencoder(spec)
    std, mean = torch.std_mean(rows.double(), dim=0)
    # A constant feature would divide by zero; any scale serves it.
    network.set_normalisation(mean, torch.where(std > 0, std, 1.0))
    is_constant = rows.amin(dim=0) == rows.amax(dim=0)
    network.leave_out(is_constant)
    if not network.is_scored.any():
        raise DataError(
            f"expected training rows of which a feature in the score varies, got {len(rows):,} in which all "
            "are constant; train on more rows, or name other features"
        )
    history = _train(network, rows, held_out, options, progress)
    if progress:
        count = min(len(rows), whitening.FIT_ROWS)
        print(f"Fitting the covariances of the score to {count:,} rows", file=sys.stderr, flush=True)
    _whiten(network, rows, options.seed)
    constant = [
        name for name, is_constant in zip(spec.inputs, is_constant.tolist(), strict=True) if is_constant
    ]
    return network, {**history, "constant_features": constant}


def _sampled(rows: Tensor, seed: int) -> Tensor:
    """At most `whitening.FIT_ROWS` of the rows, the same for the same seed."""
    if len(rows) <= whitening.FIT_ROWS:
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), whitening.FIT_ROWS, replace=False)
    return rows[torch.from_numpy(chosen)]


def _scores(network: TransactionAutoencoder, rows: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([network.score(part)[0] for part in rows.split(ROWS_AT_ONCE)])


def _train(
    network: TransactionAutoencoder, rows: Tensor, held_out: Tensor, options: TrainingOptions, progress: bool
) -> dict[str, Any]:
    order = torch.Generator().manual_seed(options.seed)
    targets, held_out = _targets(network, rows), _targets(network, held_out)
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate, fused=True)
    best, best_epoch, best_weights = float("inf"), -1, copy.deepcopy(network.state_dict())
    losses: list[float] = []
    for epoch in track(range(options.epochs), "epochs", is_quiet=not progress):
        network.train()
        for index in torch.randperm(len(targets), generator=order).split(options.batch_size):
            optimizer.zero_grad()
            batch = targets[index]
            _loss(network, batch).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            losses.append(float(_loss(network, held_out)))
        if losses[-1] < best:
            best, best_epoch, best_weights = losses[-1], epoch, copy.deepcopy(network.state_dict())
        if epoch - best_epoch >= options.patience:
            break
    network.load_state_dict(best_weights)
    return {"epochs_run": len(losses), "best_epoch": best_epoch, "validation_losses": losses}


def _targets(network: TransactionAutoencoder, rows: Tensor) -> Tensor:
    return network.visible(network.normalize(rows))


def _loss(network: TransactionAutoencoder, targets: Tensor) -> Tensor:
    _, reconstruction = network.reconstruct(targets)
    # Huber's loss: normal transactions have heavy tails, which squares would let rule the fit.
    return torch.nn.functional.smooth_l1_loss(reconstruction, targets)


def _whiten(network: TransactionAutoencoder, rows: Tensor, seed: int) -> None:
    used = network.is_scored.nonzero()[:, 0].numpy()
    rows = _sampled(rows, seed)
    with torch.no_grad():
        inputs, residuals = (part.double().numpy()[:, used] for part in _measured(network, rows))
    is_discrete = whitening.discrete_columns(rows.numpy()[:, used])
    floors = np.where(is_discrete, whitening.FLOOR_SHARE * inputs.std(axis=0), 0.0)
    scale = whitening.fit(residuals, inputs, seed, floors)

    def full(part: npt.NDArray[np.float64]) -> Tensor:
        values = np.zeros((len(network.mean),) * part.ndim)
        values[np.ix_(*[used] * part.ndim)] = part
        return torch.from_numpy(values).float()

    network.set_whitening(full(scale.center), full(scale.whitening))
    network.set_ordinary(full(scale.ordinary_center), full(scale.ordinary_whitening), scale.ordinary_limit)


def _compare_with(network: TransactionAutoencoder, rows: Tensor, seed: int) -> None:
    rows = _sampled(rows, seed)
    highest = _scores(network, rows).topk(max(1, int(REMEMBERED_SHARE * len(rows))))
    if not highest.values[-1] > 0:  # what a score has above the gate counts in units of it
        return
    with torch.no_grad():
        inputs, residual = (part.double().numpy() for part in _measured(network, rows))
        fitted = mixtures.fit(inputs, residual, whitening.discrete_columns(rows.numpy()), seed)
        matrix, offset, logs = map(torch.from_numpy, (fitted.whitening, fitted.offset, fitted.logs))
        network.set_mixtures(matrix, offset, logs, fitted.usual)
        network.set_memory(network.whiten(rows[highest.indices]), float(highest.values[-1]))


def _measured(network: TransactionAutoencoder, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs and their residual, as the score measures them."""
    normalized = network.normalize(rows)
    inputs = network.scaled(rows, normalized)
    return inputs, network.residual(inputs, network.reconstruct(normalized)[1])
