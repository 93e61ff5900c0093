"""Train, evaluate and package on a full disk: the error names the file and what to do."""

from __future__ import annotations

import pytest

from model import artifact, baselines, evaluate, package, train
from operations.models import __main__ as models
from tests.model.conftest import ROWS

WHAT_TO_DO = "No space left on device; make room there, or write to another place"


def last_line(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_a_training_names_the_file_and_is_kept(full_disk, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert train.main([f"--output={full_disk}/model", "--rows=8000", "--epochs=1"]) == 1
    problem, _, advice = last_line(capsys).partition("; the artifact is kept in ")
    assert problem == f"error: cannot write {full_disk}/model/final_model_traced.pt: {WHAT_TO_DO}"
    kept, _, command = advice.partition(": when that is solved, run anomaly ")
    assert command == f"model promote {kept} --to {full_disk}/model"
    # The training is not lost: the command puts it where there is room.
    assert models.main([*command.split()[1:-1], str(tmp_path / "model")]) == 0
    assert artifact.read(tmp_path / "model").load_model()


@pytest.mark.parametrize(("flag", "name"), [("--report", "report.json"), ("--png", "picture.png")])
def test_an_evaluation_names_file_and_flag(full_disk, trained_dir, capsys, monkeypatch, flag, name):
    pytest.importorskip("matplotlib", reason="drawing needs the extra train")
    monkeypatch.setattr(baselines, "available", lambda quick=False: baselines.QUICK[1:])
    path = full_disk / name
    assert evaluate.main([f"--model={trained_dir}", f"--rows={ROWS}", f"{flag}={path}"]) == 1
    assert last_line(capsys) == f"error: {flag}: cannot write {path}: {WHAT_TO_DO}"


@pytest.mark.parametrize(("form", "name"), [("onnx", "model.onnx"), ("pt2", "model.pt2")])
def test_a_package_names_the_file(full_disk, trained_dir, capsys, form, name):
    for module in ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ():
        pytest.importorskip(module, reason="ONNX needs it")
    flags = [f"--model={trained_dir}", f"--output={full_disk}/out", f"--formats={form}"]
    assert package.main(flags) == 1
    assert last_line(capsys) == f"error: cannot write {full_disk}/out/{name}: {WHAT_TO_DO}"


def test_an_archive_names_the_file(full_disk, trained_dir, capsys):
    pytest.importorskip("model_archiver", reason="the archive needs torch-model-archiver")
    assert package.main([f"--model={trained_dir}", f"--output={full_disk}/out", "--formats=mar"]) == 1
    error = capsys.readouterr().err
    failed = f"{full_disk}/out/pytorch_autoencoder.mar: torch-model-archiver failed"
    assert error.splitlines()[-1].startswith(f"error: {failed}: OSError: ")
    assert "No space left on device" in error.splitlines()[-1]
    assert "Traceback" not in error
