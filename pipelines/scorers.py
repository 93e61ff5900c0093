"""Options of the scorer: the model in the worker, or a server."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

from apache_beam.ml.inference.base import ModelHandler

from common.loopback import is_loopback
from common.names import ENDPOINT
from common.options import OptionError, option
from common.values import at_least
from features.default import ULB
from model.artifact import MODEL_NAME, Manifest
from model.outputs import ANOMALY_SCORE, width
from pipelines.options import DetectionOptions
from transforms.forms import Encoding
from transforms.remote import Limits, TorchServeHandler, VertexHandler
from transforms.remote_protocol import MIN_REQUEST_BYTES
from transforms.score import PytorchHandler

Scorer = Literal["pytorch", "vertex", "torchserve"]
SCORERS: Final[tuple[Scorer, ...]] = get_args(Scorer)

_LOG: Final = logging.getLogger(__name__)
_LIMITS: Final = Limits()
_REQUIRED: Final[Mapping[str, str]] = {"vertex": "vertex_endpoint", "torchserve": "torchserve_url"}


@dataclass(frozen=True)
class ScorerOptions:
    """The place where transactions are scored, and how a server is asked.

    Raises:
      OptionError: a flag lacks another, goes with another scorer, or has a wrong form.
    """

    scorer: Scorer = option(
        SCORERS[0],
        help="where transactions are scored: pytorch loads the model in every worker (the fastest), vertex "
        "and torchserve call a server that has it (default: %(default)s)",
    )
    vertex_endpoint: str | None = option(
        None,
        type=ENDPOINT,
        metavar="NAME",
        help="endpoint for --scorer=vertex, public, dedicated or private. "
        "Example: projects/my-project/locations/us-central1/endpoints/1234567890",
    )
    score_field: str = option(
        ANOMALY_SCORE,
        metavar="FIELD",
        help="with --scorer=vertex, the field of a prediction that is the score, for endpoints of another "
        "model; --medium_threshold and --high_threshold are then for it. Example: denormalized_MAE (default: "
        "%(default)s)",
    )
    vertex_psc_address: str | None = option(
        None,
        metavar="HOST",
        help="address of a Private Service Connect endpoint in the workers' network. Example: 10.0.1.23",
    )
    vertex_api_endpoint: str | None = option(
        None,
        metavar="URL",
        help="Vertex AI API other than the regional public one. Example: http://127.0.0.1:9070",
    )
    torchserve_url: str | None = option(
        None, metavar="URL", help="inference API for --scorer=torchserve. Example: http://10.0.0.5:8080"
    )
    torchserve_model: str = option(
        MODEL_NAME,
        metavar="NAME",
        help="name under which the model is registered there (default: %(default)s)",
    )
    torchserve_model_version: str | None = option(
        None, metavar="VERSION", help="version to ask for (default: the server's default version)"
    )
    torchserve_key_file: str | None = option(
        None,
        metavar="FILE",
        help="TorchServe's key_file.json, local to the workers or gs://, where its tokens are on; read again "
        "when a key is refused. Example: gs://my-bucket/private/key_file.json",
    )
    remote_rows: int = option(
        _LIMITS.rows,
        type=at_least(1),
        metavar="N",
        help="transactions a request at most (default: %(default)s)",
    )
    remote_bytes: int = option(
        _LIMITS.bytes,
        type=at_least(MIN_REQUEST_BYTES),
        metavar="N",
        help="bytes a request at most; Vertex AI takes 1.5 MB on shared endpoints (default: %(default)s)",
    )
    remote_in_flight: int = option(
        _LIMITS.in_flight,
        type=at_least(1),
        metavar="N",
        help="requests on their way at the same time, a worker process (default: %(default)s)",
    )
    remote_attempts: int = option(
        _LIMITS.patience.tries,
        type=at_least(1),
        metavar="N",
        help="how often a request is sent before the bundle is given back to the runner "
        "(default: %(default)s)",
    )
    remote_timeout_seconds: float = option(
        _LIMITS.timeout, metavar="S", help="how long to wait for an answer (default: %(default)s)"
    )

    def __post_init__(self) -> None:
        self._check_fit()
        self._check_addresses()
        if self.remote_timeout_seconds <= 0:
            raise OptionError(
                f"--remote_timeout_seconds: expected more than 0, got {self.remote_timeout_seconds}"
            )

    def _check_fit(self) -> None:
        required = _REQUIRED.get(self.scorer, "scorer")
        if not getattr(self, required):
            raise OptionError(f"--scorer={self.scorer} needs --{required}")
        if self.score_field != ANOMALY_SCORE and self.scorer != "vertex":
            raise OptionError(f"--score_field goes with --scorer=vertex, and the scorer is {self.scorer}")
        if (size := width(self.score_field, len(ULB.inputs))) is not None:
            raise OptionError(
                f"--score_field: expected a field with one number a row, got {self.score_field!r}, which has "
                f"{size}"
            )
        for field in dataclasses.fields(self):
            prefix, underscore, _ = field.name.partition("_")
            is_given = getattr(self, field.name) != field.default
            if prefix in SCORERS and underscore and is_given and self.scorer != prefix:
                raise OptionError(
                    f"--{field.name} goes with --scorer={prefix}, and the scorer is {self.scorer}"
                )

    def _check_addresses(self) -> None:
        for flag in ("vertex_api_endpoint", "torchserve_url"):
            value = getattr(self, flag)
            if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
                raise OptionError(f"--{flag}: expected a URL such as http://127.0.0.1:8080, got {value!r}")
        if _is_clear_text(self.vertex_api_endpoint):
            raise OptionError(
                f"--vertex_api_endpoint={self.vertex_api_endpoint}: tokens would travel in clear text; "
                "use https://"
            )

    def warn(self) -> None:
        """Logs a warning where TorchServe's key travels in clear text.

        No error, unlike with Vertex AI's tokens: TorchServe inside a VPC is commonly served like this.
        """
        if self.torchserve_key_file and _is_clear_text(self.torchserve_url):
            _LOG.warning(
                "--torchserve_url=%s: the key of --torchserve_key_file travels in clear text; use an https "
                "URL unless the network between the workers and TorchServe is private",
                self.torchserve_url,
            )


def _is_clear_text(url: str | None) -> bool:
    parts = urlsplit(url or "")
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def model_handler(
    scorer: ScorerOptions, detection: DetectionOptions, manifest: Manifest, profile_every: int = 0
) -> ModelHandler:
    """Makes the handler that the options describe, for `transforms.score.Score`.

    Args:
      scorer: the scorer.
      detection: the model.
      manifest: of the model, with the thresholds of the options; see `DetectionOptions.manifest`.
      profile_every: each so-manieth row is taken for the profile of the features; 0 takes none.
    """
    if scorer.scorer == "pytorch":
        seconds = detection.refresh_seconds
        return PytorchHandler(
            detection.model,
            detection.output_detail,
            detection.given_thresholds,
            "" if seconds else manifest.digest,
            seconds,
            Encoding(manifest.spec, manifest.learnt),
            profile_every,
            detection.shadow_model,
        )
    shared: dict[str, Any] = {
        "thresholds": dict(manifest.thresholds),
        "model_version": manifest.model_version,
        "detail": detection.output_detail,
        "ranges": manifest.ranges,
        "spec": manifest.spec,
        "bins": manifest.bins(profile_every) if profile_every else None,
        "limits": Limits(
            rows=scorer.remote_rows,
            bytes=scorer.remote_bytes,
            in_flight=scorer.remote_in_flight,
            timeout=scorer.remote_timeout_seconds,
            patience=dataclasses.replace(_LIMITS.patience, tries=scorer.remote_attempts),
        ),
    }
    if scorer.scorer == "vertex":
        return VertexHandler(
            **shared,
            score_field=scorer.score_field,
            endpoint=scorer.vertex_endpoint or "",
            api_endpoint=scorer.vertex_api_endpoint,
            psc_address=scorer.vertex_psc_address,
        )
    return TorchServeHandler(
        **shared,
        url=scorer.torchserve_url or "",
        name=scorer.torchserve_model,
        version=scorer.torchserve_model_version,
        key_file=scorer.torchserve_key_file,
    )
