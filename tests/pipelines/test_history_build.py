"""`anomaly history build`: the time up to which events count, and the files that a job may begin with."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.options import OptionError
from features.declaration import FeatureSpec
from features.history.hashing import bucket_of
from features.history.plan import plans
from features.learnt import NOTHING
from pipelines import history
from pipelines.history_options import HistoryOptions
from tests.model.serving.artifacts import build_own_artifact
from tests.pipelines.test_history import write_lines
from tests.transforms.history_cases import SPEC, payments
from transforms.history_files import GROUPS_A_BUCKET, HistoryFiles, HistoryFilesError

BUCKETS = 2
STORY = payments(200)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_own_artifact(tmp_path_factory.mktemp("history") / "model", SPEC, NOTHING).local_dir


def build(model: Path, rows: list[dict], directory: Path, *flags: str) -> HistoryFiles:
    directory.mkdir()
    data, output = write_lines(directory / "data.jsonl", rows), directory / "out"
    argv = [f"--data={data}", f"--model={model}", f"--output={output}", f"--history_buckets={BUCKETS}"]
    assert history.main(["build", *argv, *flags]) == 0
    return HistoryFiles.read(str(output))


@pytest.fixture(scope="module")
def files(model: Path, tmp_path_factory: pytest.TempPathFactory) -> HistoryFiles:
    return build(model, STORY, tmp_path_factory.mktemp("whole") / "files")


def contents(files: HistoryFiles) -> list[tuple[list, ...]]:
    blocks = (files.load(plan, bucket) for plan in plans(SPEC) for bucket in range(BUCKETS))
    return [tuple(array.tolist() for array in block) for block in blocks]


def test_rows_without_a_time_and_early_ones_are_in_no_history_and_move_no_end(model, files, tmp_path, capsys):
    """A stream would pass over all events between the last real one and theirs."""
    soon = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=5)).isoformat()
    strange = [STORY[0] | {"id": "untimed", "time": None}, STORY[1] | {"id": "early", "time": soon}]
    ends = (), (f"--until={soon}",), (f"--until={STORY[-1]['time']}",)
    for i, flags in enumerate(ends):
        one = build(model, [*STORY, *strange], tmp_path / str(i), *flags)
        assert (one.until, one.rows) == (files.until, len(STORY))
        assert contents(one) == contents(files)
    printed = capsys.readouterr().out
    assert printed.count("times defaulted: 1, history rows later: 1, history rows counted: 400") == 3


def test_rows_that_all_have_no_time_make_no_history(model, tmp_path):
    with pytest.raises(Exception, match="expected transactions with a time, up to --until"):
        build(model, [row | {"time": None} for row in STORY[:3]], tmp_path / "files")


def test_histories_that_end_in_the_future_are_refused(files):
    ahead = HistoryFiles(files.directory, BUCKETS, 2**52, files.build, keys=files.keys)
    with pytest.raises(HistoryFilesError, match="expected histories that end before now, got 2112-09-17"):
        HistoryOptions(history_buckets=BUCKETS).check(ahead, SPEC)


@pytest.mark.parametrize("change", [{"format": 99}, {"buckets": None}, None])
def test_a_directory_with_any_index_is_no_output(files, tmp_path, change):
    """A stream of another version may be reading it."""
    content = json.loads(Path(files.directory, "history.json").read_text())
    index = json.dumps(content | change) if change else "{"
    (tmp_path / "history.json").write_text(index)
    with pytest.raises(OptionError, match=r"--output: .* has a history already: pass another directory"):
        history.check_output(str(tmp_path))
    history.check_output(str(tmp_path / "other"))


def test_files_of_another_build_are_refused_as_their_events_end_at_another_time(model, files, tmp_path):
    """A directory that was built anew after a job had read its index."""
    other = build(model, STORY[:150], tmp_path / "files")
    plan = plans(SPEC)[0]
    file = Path(files.keys[0].directory, "bucket-00001.parquet")
    mixed = shutil.copytree(files.directory, tmp_path / "mixed")
    shutil.copy(Path(other.directory, file), mixed / file)
    read = HistoryFiles.read(str(mixed))
    assert len(read.load(plan, 0).keys)
    for load, number in ((read.load, 1), (read.load_group, 1)):
        with pytest.raises(
            HistoryFilesError, match=f"of the build {files.build} .* got one of {other.build}"
        ):
            load(plan, number)


def test_the_groups_of_a_batch_job_are_read_alone_and_make_up_the_buckets(files):
    for plan, bucket in itertools.product(plans(SPEC), range(BUCKETS)):
        whole = files.load(plan, bucket)
        assert np.all(np.diff(whole.keys.astype(object)) > 0)
        groups = {
            group: files.load_group(plan, group)
            for group in range(bucket, BUCKETS * GROUPS_A_BUCKET, BUCKETS)
        }
        for group, block in groups.items():
            mask = bucket_of(whole.keys, BUCKETS * GROUPS_A_BUCKET) == group
            for one, other in zip(block, whole.take(mask), strict=True):
                np.testing.assert_array_equal(one, other)
        assert sum(len(block.keys) for block in groups.values()) == len(whole.keys)


def test_histories_of_other_features_are_refused(files):
    content = SPEC.to_json()
    content["features"][2]["half_life"] = "2d"
    with pytest.raises(HistoryFilesError, match="of the model's feature spec, got by account"):
        files.load(plans(FeatureSpec.from_json(content))[0], 0)
