"""The versions of the packages whose private parts the local stack uses."""

import re
from importlib import metadata

import pytest

from common.command import CommandError
from local import versions
from local.process_runner import ProcessRunner
from local.runner import LocalStreamingRunner
from tests.test_layout import ROOT


@pytest.mark.parametrize("distribution", versions.VERSIONS)
def test_the_installed_one_fits_and_is_the_pinned_one(distribution):
    assert versions.check_version(distribution) == ""
    pinned = re.search(rf"^{distribution}==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned[1].startswith(versions.VERSIONS[distribution])


@pytest.mark.parametrize(
    "start", [LocalStreamingRunner, lambda: ProcessRunner().run_via_runner_api(None, None)]
)
def test_another_beam_is_refused(start, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda distribution: "2.99.0")
    with pytest.raises(
        CommandError, match=r"apache-beam: expected version 2\.77\.\*, .* got 2\.99\.0\. Run "
    ):
        start()
