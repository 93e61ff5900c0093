"""--shadow_model from the command line to the rows, and what a launch refuses of it and of a refresh."""

from __future__ import annotations

import dataclasses

import pytest

from common.options import OptionError
from features.declaration import FeatureSpec
from model import artifact
from model.manifest import MODEL_FILE
from pipelines import batch, streaming
from tests.model.serving.artifacts import build_artifact
from tests.pipelines.batch_jobs import model_flags, output_rows, write_lines
from transforms.schema import SHADOW_FIELDS

STREAM = ["--subscription=projects/my-project/subscriptions/transactions", "--output_dataset=my-project.d"]
TORCHSERVE = ["--scorer=torchserve", "--torchserve_url=http://127.0.0.1:1"]
COLUMNS = [field.name for field in SHADOW_FIELDS]


def test_a_job_with_a_shadow_raises_the_alerts_that_it_raises_without(model_dir, tmp_path):
    write_lines(tmp_path / "rows.jsonl", 500)
    shadow = build_artifact(tmp_path / "shadow", "shadow")
    argv = [f"--input={tmp_path}/rows.jsonl", *model_flags(model_dir)]
    for name, more in (("alone", []), ("both", [f"--shadow_model={shadow.uri}"])):
        batch.run([*argv, f"--output={tmp_path / name}", *more]).wait_until_finish()
    alone, both = (output_rows(tmp_path / name) for name in ("alone", "both"))
    assert both["alerts"].equals(alone["alerts"])
    assert both["alerts"].num_rows
    scores = both["scores"]
    assert scores.drop_columns(COLUMNS).equals(alone["scores"].drop_columns(COLUMNS))
    assert set(scores["shadow_version"].to_pylist()) == {"shadow"}
    assert [scores[name].null_count for name in COLUMNS] == [0, 0, 0]
    assert [alone["scores"][name].null_count for name in COLUMNS] == [scores.num_rows] * 3


def test_a_shadow_of_other_features_is_refused_at_launch(model_dir, tmp_path):
    manifest = artifact.verify(model_dir)
    spec = FeatureSpec.from_json({**manifest.spec.to_json(), "transaction_id": "key"})
    artifact.write(tmp_path, dataclasses.replace(manifest, spec=spec), [model_dir / MODEL_FILE])
    options, _ = streaming.parse([*STREAM, f"--model={model_dir}", f"--shadow_model={tmp_path}"])
    with pytest.raises(OptionError) as refused:
        options.detection.manifest()
    assert str(refused.value) == (
        f"--shadow_model: {tmp_path}: version test-1 has another feature spec (its roles) than --model; "
        "train it with the same one"
    )


def test_a_shadow_that_is_not_there_is_refused_at_launch(model_dir, tmp_path):
    options, _ = streaming.parse([*STREAM, f"--model={model_dir}", f"--shadow_model={tmp_path}"])
    with pytest.raises(OptionError, match=r"^--shadow_model: No manifest.json in"):
        options.detection.manifest()


@pytest.mark.parametrize("flag", ["--shadow_model=m", "--model_refresh_seconds=60"])
def test_the_models_of_a_server_are_rolled_out_there(flag):
    name = flag.partition("=")[0]
    with pytest.raises(OptionError, match=f"{name} goes with --scorer=pytorch, and the scorer is torchserve"):
        streaming.parse([*STREAM, "--model=m", *TORCHSERVE, flag])


def test_a_batch_job_keeps_its_model():
    with pytest.raises(OptionError, match="unknown option --model_refresh_seconds"):
        batch.parse(["--input=x.jsonl", "--output=o", "--model=m", "--model_refresh_seconds=60"])
