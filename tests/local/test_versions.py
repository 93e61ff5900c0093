"""The versions of the packages whose private parts the local stack uses."""

import re
from importlib import metadata

import pytest

from local import versions
from local.runner import LocalStreamingRunner
from tests.test_layout import ROOT


@pytest.mark.parametrize("distribution", versions.VERSIONS)
def test_the_installed_one_fits_and_is_the_pinned_one(distribution):
    assert versions.check_version(distribution) == ""
    pinned = re.search(rf"^{distribution}==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned[1].startswith(versions.VERSIONS[distribution])


def test_another_beam_is_refused(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda distribution: "2.99.0")
    with pytest.raises(
        RuntimeError, match=r"apache-beam: expected version 2\.77\.\*, .* got 2\.99\.0\. Run "
    ):
        LocalStreamingRunner()
