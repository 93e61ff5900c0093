"""Options that several commands of Google Cloud share: the project, its region, and the names in it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cloud.endpoints import DATAFLOW_VARIABLE
from cloud.jobs import Jobs
from cloud.resources.declared import Names
from common.names import PROJECT, REGION
from common.options import option


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """The place where the jobs run."""

    project: str = option(help="Google Cloud project id. Example: my-project")
    region: str = option("us-central1", help="default: %(default)s")
    dataflow_endpoint: str | None = option(
        None,
        metavar="URL",
        help=f"Dataflow endpoint other than Google's public one (default: {DATAFLOW_VARIABLE}). "
        "Example: http://localhost:8080",
    )

    def __post_init__(self) -> None:
        PROJECT.check(self.project, "--project")
        REGION.check(self.region, "--region")

    @property
    def endpoint(self) -> str | None:
        """The endpoint of the flag, or of the environment."""
        return self.dataflow_endpoint or os.environ.get(DATAFLOW_VARIABLE, "").rstrip("/") or None

    def jobs(self, poll_seconds: float = 5.0) -> Jobs:
        """Makes a client of the jobs there."""
        return Jobs(self.project, self.region, self.endpoint, poll_seconds)


@dataclass(frozen=True, kw_only=True)
class InstallationOptions(PlaceOptions):
    """One installation of the product: a project with the names that its resources have."""

    bucket: str = option("", help="bucket without gs:// (default: PREFIX + PROJECT-anomaly)")
    dataset: str = option("anomaly", help="BigQuery dataset (default: %(default)s)")
    prefix: str = option(
        "", help="start of the names of topics, subscriptions, account and repository. Example: staging-"
    )

    @property
    def names(self) -> Names:
        """The names of the resources.

        Raises:
          OptionError: a name breaks a rule.
        """
        return Names(
            self.project, self.region, self.bucket.removeprefix("gs://"), self.dataset, prefix=self.prefix
        )
