from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from apache_beam.io.filesystems import FileSystems

from local.gcs import local_gcs
from transforms.publication import (
    PUBLISHING,
    SUCCESS,
    TEMPORARY,
    PublicationError,
    is_cut_off,
    output_files,
    publish,
    remove_temporary,
    staging,
)

SETS = ("scores", "alerts")


def write_staged(directory: Path, job: str, files: int = 2) -> list[tuple[str, str]]:
    """Writes temporary files of both sets, each with its job as content."""
    staged = []
    for name in SETS:
        place = Path(staging(str(directory), job)) / name
        place.mkdir(parents=True)
        for number in range(files):
            (place / f"{number}.parquet").write_text(f"{job} {name} {number}")
            staged.append((name, str(place / f"{number}.parquet")))
    return staged


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.glob("*.parquet")}


@pytest.mark.parametrize("is_relative", [False, True], ids=["absolute", "relative"])
def test_files_get_their_names_and_the_mark_comes_last(is_relative, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    directory = Path(tmp_path.name) if is_relative else tmp_path
    staged = write_staged(directory, "a")
    names = publish(reversed(staged), str(directory), SETS)
    assert contents(tmp_path) == {
        f"{name}-0000{number}-of-00002.parquet": f"a {name} {number}" for name in SETS for number in (0, 1)
    }
    assert sorted(names) == sorted(output_files(str(directory), SETS))
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == "") == [SUCCESS]


def test_a_bundle_that_runs_again_changes_nothing(tmp_path):
    staged = write_staged(tmp_path, "a")
    names = publish(staged, str(tmp_path), SETS)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert publish(staged, str(tmp_path), SETS) == names
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_bundle_that_runs_again_after_half_of_the_renames_goes_on(tmp_path, monkeypatch):
    staged = write_staged(tmp_path, "a")
    rename, calls = FileSystems.rename, itertools.count(1)

    def three(sources: list[str], destinations: list[str]) -> None:
        """Renames the mark and two files."""
        if next(calls) > 3:
            raise OSError("the connection is gone")
        rename(sources, destinations)

    with monkeypatch.context() as patch:
        patch.setattr(FileSystems, "rename", three)
        with pytest.raises(OSError, match="the connection is gone"):
            publish(staged, str(tmp_path), SETS)
    assert is_cut_off(str(tmp_path))
    assert len(contents(tmp_path)) == 2
    publish(staged, str(tmp_path), SETS)
    assert len(contents(tmp_path)) == 4
    assert not is_cut_off(str(tmp_path))


@pytest.mark.parametrize("job", ["more", "fewer"])
def test_a_complete_output_is_replaced_when_asked_only(tmp_path, job):
    publish(write_staged(tmp_path, "old"), str(tmp_path), SETS)
    before = contents(tmp_path)
    staged = write_staged(tmp_path, job, files=3 if job == "more" else 1)
    with pytest.raises(PublicationError, match=r"has 4 files of another job.*--overwrite"):
        publish(staged, str(tmp_path), SETS)
    assert contents(tmp_path) == before
    others = ["scores-mine-of-today.parquet", "more-scores-00000-of-00001.parquet", "scores.parquet"]
    for name in others:
        (tmp_path / name).write_text("not ours")
    publish(staged, str(tmp_path), SETS, overwrite=True)
    assert {text.split()[0] for text in contents(tmp_path).values()} == {job, "not"}
    assert len(contents(tmp_path)) == len(staged) + len(others)
    assert (tmp_path / SUCCESS).exists()


def test_what_a_stopped_job_left_is_replaced_unasked(tmp_path):
    staged = write_staged(tmp_path, "new")
    (tmp_path / PUBLISHING).write_text("of a job that was killed")
    (tmp_path / "scores-00000-of-00009.parquet").write_text("its only file")
    publish(staged, str(tmp_path), SETS)
    assert {text.split()[0] for text in contents(tmp_path).values()} == {"new"}


def test_a_job_whose_files_are_gone_leaves_the_output_of_the_other(tmp_path):
    mine, other = write_staged(tmp_path, "mine"), write_staged(tmp_path, "other")
    publish(other, str(tmp_path), SETS)
    before = contents(tmp_path)
    with pytest.raises(PublicationError, match=r"is gone, probably because another job has published"):
        publish(mine, str(tmp_path), SETS, overwrite=True)
    assert contents(tmp_path) == before
    assert (tmp_path / SUCCESS).exists()


def test_temporary_files_of_failed_jobs_go_with_those_of_earlier_versions(tmp_path):
    write_staged(tmp_path, "failed")
    old = tmp_path / f"beam-temp-scores-{'0' * 32}"
    old.mkdir()
    (old / "x.scores.parquet").write_text("a part")
    (tmp_path / "beam-temp-of-mine").mkdir()
    (tmp_path / "beam-temp-of-mine" / "x.parquet").write_text("not ours")
    publish(write_staged(tmp_path, "a"), str(tmp_path), SETS)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["beam-temp-of-mine"]


def test_a_job_that_fails_removes_its_own_temporary_files(tmp_path):
    write_staged(tmp_path, "failed")
    write_staged(tmp_path, "running")
    remove_temporary(str(tmp_path), "failed")
    assert [path.name for path in (tmp_path / TEMPORARY).iterdir()] == ["running"]


def test_in_cloud_storage(tmp_path):
    """On a directory that stands for gs://, as in the local stack."""
    with local_gcs(tmp_path):
        write_staged(tmp_path / "bucket/out", "a")
        place = "gs://bucket/out"
        staged = [
            (name, f"{staging(place, 'a')}/{name}/{number}.parquet") for name in SETS for number in (0, 1)
        ]
        assert publish(staged, f"{place}/", SETS)[0] == f"{place}/alerts-00000-of-00002.parquet"
        files = [path for path in (tmp_path / "bucket/out").rglob("*") if path.is_file()]
        assert sorted(path.name for path in files) == sorted([SUCCESS, *contents(tmp_path / "bucket/out")])
