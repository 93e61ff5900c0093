"""anomaly resources status where nobody is signed in: one line, and no table."""

from __future__ import annotations

import google.auth
import pytest
from google.auth.exceptions import DefaultCredentialsError

from cloud.resources.__main__ import main


@pytest.fixture
def signed_out(monkeypatch, tmp_path):
    """This process without credentials, and a PATH without gcloud."""

    def default(*args: object, **kwargs: object) -> None:
        raise DefaultCredentialsError("Your default credentials were not found.")

    monkeypatch.setattr(google.auth, "default", default)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("signed_out")
@pytest.mark.parametrize("form", ["table", "json"])
def test_it_is_one_line(capsys, form):
    flags = ["--project=my-project", "--region=europe-west1", f"--format={form}"]
    assert main(["status", *flags]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: none of the ")
    assert " resources can be looked at; the first: " in said.err
