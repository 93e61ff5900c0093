"""Fixtures of the tests of the local stack."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def load_source(tmp_path: Path):
    """Makes the source of a load job: files of one format with the contents given, and the job's options."""

    def make(kind, *contents, **config):
        files = []
        for number, content in enumerate(contents):
            files.append(tmp_path / f"file-{number}")
            files[-1].write_bytes(content if isinstance(content, bytes) else content.encode())
        return kind(files, config)

    return make
