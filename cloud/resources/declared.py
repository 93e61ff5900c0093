"""The declaration: every resource of the product, in the order in which they are made."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final

from cloud.resources.accounts import Apis, Repository, Role, ServiceAccount
from cloud.resources.base import Resource
from cloud.resources.storage import Bucket
from cloud.resources.tables import Dataset, Table
from cloud.resources.topics import Subscription, Topic
from common.names import BUCKET, DATASET_ID, PROJECT, REGION, prefix
from transforms import tables

APIS: Final = (
    "artifactregistry.googleapis.com",
    "bigquery.googleapis.com",
    "bigquerystorage.googleapis.com",
    "cloudbuild.googleapis.com",
    # Preflight asks it which permissions the caller has, on the quota of this project.
    "cloudresourcemanager.googleapis.com",
    "compute.googleapis.com",
    "dataflow.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "pubsub.googleapis.com",
    "storage.googleapis.com",
)
VERTEX_API: Final = "aiplatform.googleapis.com"
WORKER: Final = "anomaly-worker"
BUILDER: Final = "anomaly-build"
_PUBSUB_AGENT: Final = "serviceAccount:service-{number}@gcp-sa-pubsub.iam.gserviceaccount.com"


@dataclass(frozen=True)
class Names:
    """What everything is called. The other commands take their defaults from here.

    Attributes:
      project: Google Cloud project id.
      region: of bucket, repository and jobs.
      bucket: without gs://; PREFIX + "PROJECT-anomaly" when empty.
      dataset: BigQuery dataset, without the project.
      dataset_location: the region when empty.
      prefix: set before the names of topics, subscriptions, account and repository, so that two
        installations fit into one project. It ends with "-".
      vertex: whether pipelines may call Vertex AI endpoints.
      full: whether the scores table has every output of the model.
    """

    project: str
    region: str = "us-central1"
    bucket: str = ""
    dataset: str = "anomaly"
    dataset_location: str = ""
    prefix: str = ""
    vertex: bool = False
    full: bool = False

    def __post_init__(self) -> None:
        PROJECT.check(self.project, "--project")
        REGION.check(self.region, "--region")
        DATASET_ID.check(self.dataset, "--dataset")
        if self.prefix:
            prefix(WORKER, BUILDER).check(self.prefix, "--prefix")
        BUCKET.check(self.bucket_url.removeprefix("gs://"), "--bucket")

    @property
    def bucket_url(self) -> str:
        """gs://BUCKET."""
        return f"gs://{self.bucket or f'{self.prefix}{self.project}-anomaly'}"

    @property
    def dataset_name(self) -> str:
        """PROJECT.DATASET."""
        return f"{self.project}.{self.dataset}"

    @property
    def repository(self) -> str:
        """Id of the image repository."""
        return f"{self.prefix}anomaly"

    @property
    def image(self) -> str:
        """The image of launcher and workers, without a tag."""
        return f"{self.region}-docker.pkg.dev/{self.project}/{self.repository}/pipelines"

    @property
    def account(self) -> str:
        """E-mail address of the workers' service account."""
        return f"{self.prefix}{WORKER}@{self.project}.iam.gserviceaccount.com"

    @property
    def builder(self) -> str:
        """E-mail address of the service account that builds of the image run as."""
        return f"{self.prefix}{BUILDER}@{self.project}.iam.gserviceaccount.com"

    def topic(self, name: str) -> str:
        """Full name of the topic that is called `name` here."""
        return f"projects/{self.project}/topics/{self.prefix}{name}"

    def subscription(self, name: str) -> str:
        """Full name of the subscription that is called `name` here."""
        return f"projects/{self.project}/subscriptions/{self.prefix}{name}"


def declare(names: Names) -> tuple[Resource, ...]:
    """Everything that shall exist, in an order in which each finds what it needs."""
    return (
        Apis(names.project, apis=(*APIS, VERTEX_API) if names.vertex else APIS),
        ServiceAccount(names.account),
        ServiceAccount(names.builder),
        Bucket(names.bucket_url, location=names.region),
        Repository(names.repository, project=names.project, location=names.region),
        *_messages(names),
        *_tables(names),
        *roles(names),
    )


def _messages(names: Names) -> tuple[Resource, ...]:
    alerts, dead = names.topic("alerts"), names.topic("alerts-dead-letter")
    return (
        # A day of messages can be scored again after a seek of the subscription to an earlier time.
        Topic(names.topic("transactions"), retention=dt.timedelta(days=1)),
        Topic(dead),
        Topic(alerts),
        # Dataflow's own: it extends deadlines, deduplicates, and would send messages to a dead-letter topic
        # that it merely put back. What cannot be scored lands in error_records instead.
        Subscription(
            names.subscription("transactions-pipeline"),
            topic=names.topic("transactions"),
            ack_deadline=dt.timedelta(seconds=60),
        ),
        # Read by whoever acts on alerts: never the same alert twice within a deadline, and one that cannot be
        # handled goes aside after five attempts.
        Subscription(
            names.subscription("alerts-review"),
            topic=alerts,
            exactly_once=True,
            dead_letter_topic=dead,
        ),
        # A topic without a subscription keeps nothing.
        Subscription(names.subscription("alerts-dead-letter-review"), topic=dead),
    )


def _tables(names: Names) -> tuple[Resource, ...]:
    location = names.dataset_location or names.region
    specs = (tables.scores_table(full=names.full), *tables.TABLES[1:])
    return (
        Dataset(names.dataset_name, location=location, writer=names.account),
        *(Table(f"{names.dataset_name}.{spec.name}", spec=spec) for spec in specs),
    )


def roles(names: Names) -> tuple[Role, ...]:
    """The roles of the workers' account, of the builds' and of Pub/Sub's, each on the narrowest thing.

    Writing and reading the dataset's tables is granted on the dataset; see Dataset.
    """
    worker = f"serviceAccount:{names.account}"
    builder = f"serviceAccount:{names.builder}"

    def role(name: str, target: str, target_name: str, why: str, member: str = worker) -> Role:
        return Role(
            f"roles/{name}",
            member=member,
            target=target,  # type: ignore[arg-type]
            target_name=target_name,
            project=names.project,
            location=names.region,
            why=why,
        )

    source = f"{names.prefix}transactions-pipeline"
    review = f"{names.prefix}alerts-review"
    vertex = role("aiplatform.user", "project", names.project, "call the endpoint of --scorer=vertex")
    return (
        role("dataflow.worker", "project", names.project, "take work, write logs and metrics"),
        role("bigquery.jobUser", "project", names.project, "run --input_query and load jobs"),
        role("bigquery.readSessionUser", "project", names.project, "read tables by the Storage Read API"),
        *((vertex,) if names.vertex else ()),
        role("storage.objectAdmin", "bucket", names.bucket_url, "read the model, stage, write files"),
        role("artifactregistry.reader", "repository", names.repository, "pull the image"),
        role("pubsub.subscriber", "subscription", source, "pull and acknowledge transactions"),
        role("pubsub.viewer", "subscription", source, "let Dataflow look the subscription up"),
        role("pubsub.publisher", "topic", f"{names.prefix}alerts", "publish alerts"),
        role("pubsub.viewer", "topic", f"{names.prefix}alerts", "let Dataflow look the topic up"),
        role(
            "pubsub.publisher",
            "topic",
            f"{names.prefix}alerts-dead-letter",
            "Pub/Sub itself moves undeliverable alerts here",
            _PUBSUB_AGENT,
        ),
        role("pubsub.subscriber", "subscription", review, "Pub/Sub itself takes them off", _PUBSUB_AGENT),
        role("logging.logWriter", "project", names.project, "write the log of a build", builder),
        role("storage.objectViewer", "bucket", names.bucket_url, "read the source of a build", builder),
        role("artifactregistry.writer", "repository", names.repository, "push the image", builder),
    )
