"""Packs a trained model for servers: TorchServe archive, ONNX, torch.export."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch

import features
import model.handler
from common.command import CommandError, Parser, command
from common.options import add_options, option, read_options
from common.output import add_format, print_rows
from common.writing import write_text, writing
from features.declaration import FeatureSpec
from features.default import ULB
from features.learnt import NOTHING, Learnt
from model import artifact
from model.network import TransactionAutoencoder
from model.outputs import ANSWER_FIELDS

EXAMPLES: Final = """
  anomaly package --model out/model --output out/packages
  anomaly package --model gs://my-bucket/model --output out/packages --formats mar onnx
"""
ENCODER: Final = tuple(
    f"{name}.py"
    for name in (
        *(
            "__init__",
            "checks",
            "declaration",
            "kinds",
            "learnt",
            "roles",
            "rows",
            "schema",
            "times",
            "values",
        ),
        "words",
    )
)
"""Modules of features/ that the archive of TorchServe carries; they need NumPy alone."""
ONNX_FILE: Final = "model.onnx"
EXPORT_FILE: Final = "model.pt2"
ONNX_INPUT: Final = "features"
ONNX_OUTPUTS: Final = ANSWER_FIELDS
ONNX_OPSET: Final = 17
ONNX_IR_VERSION: Final = 8
"""Old enough for onnxruntime 1.12 and later, since importers such as BigQuery ML trail the newest format."""


class PackagingError(CommandError):
    """A package cannot be made here, or its answers differ from those of the model."""


class _Flat(torch.nn.Module):
    """The 14 fields and the contributions as plain tensors, in the order of ONNX_OUTPUTS."""

    def __init__(self, network: TransactionAutoencoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Raw inputs [n, k] to the outputs."""
        return (*self.network(features).values(), self.network.score(features)[2])


def eager(module: torch.jit.ScriptModule, spec: FeatureSpec = ULB) -> TransactionAutoencoder:
    """Rebuilds the network of a traced module; ONNX and torch.export start from it.

    Args:
      module: loaded with freeze=False, since freezing turns the weights into constants of the graph.
      spec: of its inputs, from the manifest.

    Raises:
      PackagingError: an earlier version trained the model, and its score has another formula.
    """
    network, state = TransactionAutoencoder(spec), dict(module.state_dict())
    if "ordinary_whitening" not in state:
        raise PackagingError(
            "expected a model of this version's score, got one of an earlier version: it runs and serves as "
            "it is, but ONNX and torch.export need the network that it came from; pass --formats mar, "
            "train it again, or package it with the version that trained it"
        )
    # These have their sizes from the training.
    network.set_memory(state["memory"], float(state["gate"]))
    network.set_mixtures(state["mixture_whitening"], state["mixture_offset"], state["mixture_logs"])
    network.load_state_dict(state)
    return network.eval()


def archive_available() -> bool:
    """Tells whether torch-model-archiver is installed."""
    return importlib.util.find_spec("model_archiver") is not None


def write_archive(
    model_file: Path, directory: Path, version: str, spec: FeatureSpec = ULB, learnt: Learnt = NOTHING
) -> Path:
    """Writes the TorchServe archive of a traced model.

    Args:
      model_file: the file of `model.torchscript.save`, by the name `final_model_traced.pt`.
      directory: where the archive goes; an older one is replaced.
      version: of the model.
      spec: of its features.
      learnt: of them, from the manifest.

    Raises:
      PackagingError: torch-model-archiver is not installed.
    """
    if not archive_available():
        raise PackagingError(
            f"{artifact.ARCHIVE_FILE} needs torch-model-archiver: pip install torch-model-archiver"
        )
    with TemporaryDirectory() as work:
        extra, temporary = Path(work) / "extra", Path(work) / "tmp"
        temporary.mkdir()
        _write_encoder(extra, spec, learnt)
        command = [sys.executable, "-m", "model_archiver.model_packaging", "--force"]
        flags = {
            "model-name": artifact.MODEL_NAME,
            "version": version,
            "serialized-file": model_file,
            "handler": model.handler.__file__,
            "extra-files": extra,
            "export-path": directory,
        }
        command += [f"--{name}={value}" for name, value in flags.items()]
        # The archiver works in the directory for temporary files, under the name of the model: in that of
        # the machine, two trainings at a time would remove each other's files.
        environment = {**os.environ, "TMPDIR": str(temporary)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        # Before its last line, the error, comes the traceback.
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise PackagingError(f"{directory / artifact.ARCHIVE_FILE}: torch-model-archiver failed: {reason}")
    return directory / artifact.ARCHIVE_FILE


def _write_encoder(directory: Path, spec: FeatureSpec, learnt: Learnt) -> None:
    """Writes the modules of ENCODER and the spec, by which the handler encodes instances."""
    target = directory / "features"
    target.mkdir(parents=True)
    for name in ENCODER:
        shutil.copyfile(Path(features.__file__).with_name(name), target / name)
    content = {"spec": spec.to_json(), "learnt": learnt.to_json()}
    write_text(directory / model.handler.FEATURES_FILE, json.dumps(content))


def write_onnx(network: TransactionAutoencoder, path: Path) -> Path:
    """Writes the network as ONNX and checks it against eager mode in onnxruntime.

    It has one input `features`, float32 [n, k] of any n. The outputs are ONNX_OUTPUTS, plain float32
    tensors, as BigQuery ML imports them.

    Raises:
      PackagingError: onnx, onnxscript or onnxruntime is missing, or the answers differ.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    if missing:
        raise PackagingError(f"ONNX needs {', '.join(missing)}: pip install {' '.join(missing)}")
    import onnx
    import onnxruntime

    flat = _Flat(network).eval()
    with _quiet_export(), writing(path):
        torch.onnx.export(
            flat,
            (_example(network),),
            str(path),
            dynamo=True,
            verbose=False,
            external_data=False,
            opset_version=ONNX_OPSET,
            input_names=[ONNX_INPUT],
            output_names=list(ONNX_OUTPUTS),
            dynamic_shapes={"features": {0: torch.export.Dim("n", min=1)}},
        )
    stored = onnx.load(path)
    if [opset.version for opset in stored.opset_import] != [ONNX_OPSET]:
        raise PackagingError(f"ONNX: the exporter wrote {list(stored.opset_import)}, not opset {ONNX_OPSET}")
    stored.ir_version = ONNX_IR_VERSION
    onnx.checker.check_model(stored, full_check=True)
    with writing(path):
        onnx.save(stored, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def answer(rows: torch.Tensor) -> Sequence[Any]:
        return session.run(list(ONNX_OUTPUTS), {ONNX_INPUT: rows.numpy()})

    _check("ONNX", flat, answer)
    return path


def write_exported(network: TransactionAutoencoder, path: Path) -> Path:
    """Writes the network by torch.export, with the outputs of ONNX_OUTPUTS, and checks it against eager mode.

    A .pt2 is read by the torch version that wrote it and newer ones; servers with an older torch need the
    traced file.

    Raises:
      PackagingError: the answers differ.
    """
    flat = _Flat(network).eval()
    program = torch.export.export(
        flat, (_example(network),), dynamic_shapes={"features": {0: torch.export.Dim("n", min=1)}}
    )
    # In memory first: torch's own writer aborts the process where the disk is full.
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with writing(path):
        path.write_bytes(buffer.getvalue())
    loaded = torch.export.load(path).module()
    _check("torch.export", flat, lambda rows: [value.detach().numpy() for value in loaded(rows)])
    return path


def _example(network: TransactionAutoencoder, n: int = 3) -> torch.Tensor:
    """Random rows around the training data, twice as wide."""
    noise = torch.randn(n, len(network.mean), generator=torch.Generator().manual_seed(n))
    return network.mean + 2.0 * network.std * noise


def _check(kind: str, flat: _Flat, answer: Callable[[torch.Tensor], Sequence[Any]]) -> None:
    """Compares with eager mode: 1e-4 relative, beside the rounding of float32 at the scale of each output.

    The widest scale of the default spec is that of Time. Its reconstruction is off by up to 0.1 s, which is
    much to the logarithm of one that is close to 0 s.
    """
    widest = float(flat.network.std.max())
    scales = {"denormalized_MSLE": 100.0, "denormalized_MSE": widest**2}
    for n in (1, 7, 256):
        rows = _example(flat.network, n)
        with torch.no_grad():
            expected = [value.numpy() for value in flat(rows)]
        for name, want, got in zip(ONNX_OUTPUTS, expected, answer(rows), strict=True):
            scale = scales.get(name, widest if name.startswith("denormalized") else 1.0)
            if want.shape != got.shape or not np.allclose(want, got, rtol=1e-4, atol=1e-5 * scale):
                raise PackagingError(f"{kind}: {name} differs from eager mode at {n} rows")


@contextlib.contextmanager
def _quiet_export() -> Iterator[None]:
    """Silences the exporter's notes on its own internals and on packages that this model has no use for."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


FORMATS: Final = ("mar", "onnx", "pt2")


@dataclass(frozen=True)
class PackageOptions:
    """Options of the packages."""

    model: str = option(metavar="DIR", help="artifact directory, local or gs://bucket/prefix")
    output: Path = option(type=Path, metavar="DIR", help="local directory for the packages")
    formats: tuple[str, ...] = option(FORMATS, nargs="+", choices=FORMATS, help="default: all")


def package(packed: artifact.Artifact, directory: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Writes packages of an artifact into a local directory.

    Args:
      packed: the artifact.
      directory: takes the packages.
      formats: out of FORMATS.

    Returns:
      The paths of the packages.

    Raises:
      ArtifactError: `directory` cannot be written to.
      PackagingError: see the writers.
    """
    artifact.check_writable(directory)

    @functools.cache
    def network() -> TransactionAutoencoder:
        return eager(packed.load_model(freeze=False), packed.manifest.spec)

    # The archive takes the graph as it is, even that of an earlier version. The others refuse it at once,
    # before a file is written.
    if set(formats) != {"mar"}:
        network()
    writers: dict[str, Callable[[], Path]] = {
        "mar": lambda: write_archive(
            packed.model_path,
            directory,
            packed.manifest.model_version,
            packed.manifest.spec,
            packed.manifest.learnt,
        ),
        "onnx": lambda: write_onnx(network(), directory / ONNX_FILE),
        "pt2": lambda: write_exported(network(), directory / EXPORT_FILE),
    }
    return [writers[name]() for name in formats]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `anomaly package`."""
    parser = Parser("anomaly package", __doc__, EXAMPLES)
    add_options(parser, PackageOptions)
    add_format(parser)
    args = parser.parse_args(argv)
    options = read_options(PackageOptions, args)
    packed = artifact.read(options.model, copied=True)
    paths = package(packed, options.output, options.formats)
    print_rows([{"file": str(path), "bytes": path.stat().st_size} for path in paths], args.format)
    return 0
