from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from features.ulb import N_FEATURES
from model import artifact, package, torchscript
from model.outputs import ANSWER_FIELDS
from tests.model.test_network import answers, assert_close


@pytest.fixture(scope="module")
def rows(normals) -> np.ndarray:
    return normals[:50]


@pytest.fixture(scope="module")
def onnx_file(network, tmp_path_factory) -> Path:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="ONNX is an extra: pip install onnx onnxscript onnxruntime")
    return package.write_onnx(network, tmp_path_factory.mktemp("onnx") / package.ONNX_FILE)


def test_eager_network_of_an_artifact_has_its_weights(trained, network, rows):
    assert_close(answers(trained.load_model(), rows), answers(network, rows), float(network.std.max()))


@pytest.mark.parametrize("n", [1, 2, 50])
def test_onnx_answers_as_eager_does(onnx_file, network, rows, n):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    values = session.run(None, {package.ONNX_INPUT: rows[:n]})
    got = dict(zip([output.name for output in session.get_outputs()], values, strict=True))
    assert_close(got, answers(network, rows[:n]), float(network.std.max()))


def test_onnx_is_plain_tensors_in_an_old_enough_format(onnx_file):
    import onnx

    stored = onnx.load(onnx_file)
    assert [value.name for value in stored.graph.input] == ["features"]
    assert [value.name for value in stored.graph.output] == [*ANSWER_FIELDS]
    for value in [*stored.graph.input, *stored.graph.output]:
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert value.type.tensor_type.shape.dim[0].dim_param == "n"
    assert (stored.ir_version, stored.opset_import[0].version) == (8, 17)


def test_exported_program_answers_as_eager_does(network, rows, tmp_path):
    path = package.write_exported(network, tmp_path / package.EXPORT_FILE)
    program = torch.export.load(path).module()
    for n in (1, 50):
        got = dict(zip(package.ONNX_OUTPUTS, program(torch.from_numpy(rows[:n])), strict=True))
        got = {name: value.detach().numpy() for name, value in got.items()}
        assert_close(got, answers(network, rows[:n]), float(network.std.max()))


def test_a_package_with_other_answers_is_refused(network):
    flat = package._Flat(network)

    def wrong(rows: torch.Tensor) -> list[np.ndarray]:
        with torch.no_grad():
            values = [value.numpy().copy() for value in flat(rows)]
        values[-2] *= 1.01
        return values

    with pytest.raises(package.PackagingError, match="ONNX: anomaly_score differs"):
        package._check("ONNX", flat, wrong)


def test_archive_holds_model_handler_and_features(trained):
    with zipfile.ZipFile(trained.local_dir / artifact.ARCHIVE_FILE) as archive:
        assert {
            "final_model_traced.pt",
            "handler.py",
            "features.json",
            "features/rows.py",
            "MAR-INF/MANIFEST.json",
        } <= set(archive.namelist())
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]
        assert archive.read("final_model_traced.pt") == trained.model_path.read_bytes()
    assert manifest["modelName"] == "pytorch_autoencoder"
    assert manifest["modelVersion"] == trained.manifest.model_version
    assert manifest["serializedFile"] == "final_model_traced.pt"


def test_the_command_writes_what_it_is_asked_for(trained_dir, tmp_path, capsys):
    out = tmp_path / "packages"
    assert package.main(["--model", str(trained_dir), "--output", str(out), "--formats", "mar", "pt2"]) == 0
    assert {path.name for path in out.iterdir()} == {artifact.ARCHIVE_FILE, package.EXPORT_FILE}
    assert str(out / package.EXPORT_FILE) in capsys.readouterr().out


def test_a_missing_archiver_says_what_to_install(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(package, "archive_available", lambda: False)
    arguments = ["--model", trained.uri, "--output", str(tmp_path), "--formats", "mar"]
    assert package.main(arguments) == 1
    assert "pip install torch-model-archiver" in capsys.readouterr().err


def test_an_output_that_is_no_directory_is_named(trained_dir, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert package.main(["--model", str(trained_dir), "--output", str(tmp_path / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_no_rows_is_a_batch_too(network):
    with torch.no_grad():
        assert network(torch.zeros(0, N_FEATURES))["anomaly_score"].shape == (0,)


def test_of_an_earlier_version_the_archive_alone_is_packed(trained, tmp_path, monkeypatch):
    """Its graph lacks buffers of this version's network, which the archive does not need."""
    with torchscript._quiet():
        older = torch.jit.script(torch.nn.Linear(N_FEATURES, 1))
    monkeypatch.setattr(artifact.Artifact, "load_model", lambda packed, freeze: older)
    with pytest.raises(package.PackagingError, match=r"of an earlier version.*pass --formats mar"):
        package.package(trained, tmp_path)
    assert not list(tmp_path.iterdir())
    assert [path.name for path in package.package(trained, tmp_path, ["mar"])] == [artifact.ARCHIVE_FILE]
