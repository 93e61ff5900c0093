"""The real transactions, for the tests that compare with them."""

from pathlib import Path

import pytest

ULB = Path(__file__).parents[3] / "shared" / "data" / "ulb_transactions.parquet"


@pytest.fixture(scope="session")
def ulb_file() -> Path:
    if not ULB.is_file():
        pytest.skip("the real transactions are not there (../shared/data/ulb_transactions.parquet)")
    return ULB
