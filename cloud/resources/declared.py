"""The names and the declarations of all resources of the product, in the order of their creation."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Final

from cloud.monitoring.dashboard import dashboard
from cloud.monitoring.options import MonitoringOptions
from cloud.monitoring.policies import policies
from cloud.monitoring.queries import Scope
from cloud.resources.accounts import Apis, Repository, Role, ServiceAccount, Target
from cloud.resources.base import Resource
from cloud.resources.monitoring import AlertPolicy, Dashboard, NotificationChannel
from cloud.resources.storage import Bucket
from cloud.resources.tables import Dataset, Table
from cloud.resources.topics import Subscription, Topic
from common.names import BUCKET, DATASET_ID, KMS_KEY, PROJECT, REGION, account_address, prefix
from common.options import OptionError
from transforms import tables

APIS: Final = (
    "artifactregistry.googleapis.com",
    "bigquery.googleapis.com",
    "bigquerystorage.googleapis.com",
    "cloudbuild.googleapis.com",
    # Preflight asks this API for the caller's permissions, on the quota of this project.
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
KEY_USERS: Final = (
    "service-{number}@gs-project-accounts",
    "service-{number}@gcp-sa-artifactregistry",
    "service-{number}@gcp-sa-pubsub",
    "bq-{number}@bigquery-encryption",
    # Of a job with --dataflow_kms_key, for its state and its disks.
    "service-{number}@dataflow-service-producer-prod",
    "service-{number}@compute-system",
)
"""Google's accounts that encrypt with --kms_key."""
_PUBSUB_AGENT: Final = "serviceAccount:service-{number}@gcp-sa-pubsub.iam.gserviceaccount.com"


@dataclass(frozen=True)
class Names:
    """Names of all resources of one installation. The other commands take their defaults from here.

    Attributes:
      project: Google Cloud project id.
      region: of bucket, repository and jobs.
      bucket: without gs://; PREFIX + "PROJECT-anomaly" when empty, with - for what no bucket may have.
      dataset: BigQuery dataset, without the project.
      dataset_location: the region when empty.
      prefix: start of the names of topics, subscriptions, account and repository, so that two installations
        fit into one project. It ends with "-".
      vertex: whether pipelines may call Vertex AI endpoints.
      scores_topic: whether there is a topic for every scored row (--scores_topic of the stream).
      full: whether the scores table has every output of the model.
      kms_key: full name of the Cloud KMS key that encrypts bucket, repository, topics and dataset; Google's
        own keys when empty.

    Raises:
      OptionError: a name breaks a rule.

    >>> Names("my-project", prefix="staging-").topic("alerts")
    'projects/my-project/topics/staging-alerts'
    """

    project: str
    region: str = "us-central1"
    bucket: str = ""
    dataset: str = "anomaly"
    dataset_location: str = ""
    prefix: str = ""
    vertex: bool = False
    scores_topic: bool = False
    full: bool = False
    kms_key: str = ""

    def __post_init__(self) -> None:
        PROJECT.check(self.project, "--project")
        REGION.check(self.region, "--region")
        DATASET_ID.check(self.dataset, "--dataset")
        if self.prefix:
            prefix(WORKER, BUILDER).check(self.prefix, "--prefix")
        BUCKET.check(self.bucket_url.removeprefix("gs://"), "--bucket")
        if self.kms_key:
            KMS_KEY.check(self.kms_key, "--kms_key")
            location = KMS_KEY.split(self.kms_key)["LOCATION"]
            places = {"--region": self.region, "--dataset_location": self.dataset_location or self.region}
            for flag, place in places.items():
                if location.lower() != place.lower():
                    raise OptionError(f"--kms_key: expected a key in {flag}={place}, got one in {location}")

    @property
    def bucket_url(self) -> str:
        """gs://BUCKET."""
        # A dot in the name of a bucket asks for a proof that the domain is ours.
        project = re.sub("[:.]", "-", self.project)
        return f"gs://{self.bucket or f'{self.prefix}{project}-anomaly'}"

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
        project = self.project.replace(":", "/")  # : stands before the tag
        return f"{self.region}-docker.pkg.dev/{project}/{self.repository}/pipelines"

    @property
    def account(self) -> str:
        """E-mail address of the workers' service account."""
        return account_address(f"{self.prefix}{WORKER}", self.project)

    @property
    def builder(self) -> str:
        """E-mail address of the service account of image builds."""
        return account_address(f"{self.prefix}{BUILDER}", self.project)

    def topic(self, name: str) -> str:
        """Full name of the topic `name` of this installation."""
        return f"projects/{self.project}/topics/{self.prefix}{name}"

    def subscription(self, name: str) -> str:
        """Full name of the subscription `name` of this installation."""
        return f"projects/{self.project}/subscriptions/{self.prefix}{name}"


def declare(names: Names) -> tuple[Resource, ...]:
    """Lists all resources; each stands behind those that it needs."""
    return (
        Apis(names.project, apis=(*APIS, VERTEX_API) if names.vertex else APIS),
        ServiceAccount(names.account),
        ServiceAccount(names.builder),
        *_key_users(names),
        Bucket(names.bucket_url, location=names.region, kms_key=names.kms_key),
        Repository(names.repository, project=names.project, location=names.region, kms_key=names.kms_key),
        *_messages(names),
        *_tables(names),
        *roles(names),
    )


def declare_monitoring(names: Names, options: MonitoringOptions) -> tuple[Resource, ...]:
    """Lists the notification channels that are told, the dashboard and the alert policies."""
    scope = Scope(
        names.project,
        names.region,
        options.job_name,
        topic=f"{names.prefix}transactions",
        subscription=f"{names.prefix}transactions-pipeline",
    )
    location = names.dataset_location or names.region
    return (
        *(NotificationChannel(channel) for channel in dict.fromkeys(options.notify)),
        Dashboard(
            "dashboard",
            installation=names.repository,
            body=dashboard(scope, options, location, names.prefix),
        ),
        *(
            AlertPolicy(
                policy.id,
                installation=names.repository,
                body=policy.body(names.prefix),
                channels=options.notify,
            )
            for policy in policies(scope, options, names.dataset_name, names.prefix)
        ),
    )


def _key_users(names: Names) -> tuple[Role, ...]:
    """Lists the accounts of services that encrypt with the key. Bucket and others cannot be made without."""
    if not names.kms_key:
        return ()
    return tuple(
        Role(
            "roles/cloudkms.cryptoKeyEncrypterDecrypter",
            member=f"serviceAccount:{agent}.iam.gserviceaccount.com",
            target="key",
            target_name=names.kms_key,
            project=names.project,
        )
        for agent in KEY_USERS
    )


def _messages(names: Names) -> tuple[Resource, ...]:
    alerts, dead = names.topic("alerts"), names.topic("alerts-dead-letter")
    key = names.kms_key
    return (
        # A seek of the subscription to an earlier time scores up to one day of messages again.
        Topic(names.topic("transactions"), retention=dt.timedelta(days=1), kms_key=key),
        Topic(dead, kms_key=key),
        Topic(alerts, kms_key=key),
        *((Topic(names.topic("scores"), kms_key=key),) if names.scores_topic else ()),
        # For Dataflow, which extends deadlines and deduplicates. It also returns messages for reasons of its
        # own, so that a dead-letter topic would take sound ones. Bad messages go to error_records instead.
        Subscription(
            names.subscription("transactions-pipeline"),
            topic=names.topic("transactions"),
            ack_deadline=dt.timedelta(seconds=60),
        ),
        # For the consumers that act on alerts: no alert comes twice, and one that nobody acknowledges goes to
        # the dead-letter topic after five deliveries.
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
        Dataset(names.dataset_name, location=location, writer=names.account, kms_key=names.kms_key),
        *(Table(f"{names.dataset_name}.{spec.name}", spec=spec) for spec in specs),
    )


def roles(names: Names) -> tuple[Role, ...]:
    """Lists the roles of the accounts of workers, builds and Pub/Sub, each on the narrowest thing.

    The right to write and read the tables is part of the dataset; see Dataset.
    """
    worker = f"serviceAccount:{names.account}"
    builder = f"serviceAccount:{names.builder}"

    def role(name: str, target: Target, target_name: str, member: str = worker) -> Role:
        return Role(
            f"roles/{name}",
            member=member,
            target=target,
            target_name=target_name,
            project=names.project,
            location=names.region,
        )

    source = f"{names.prefix}transactions-pipeline"
    review = f"{names.prefix}alerts-review"
    alerts = f"{names.prefix}alerts"
    vertex = role("aiplatform.user", "project", names.project)  # for --scorer=vertex
    return (
        role("dataflow.worker", "project", names.project),
        role("bigquery.jobUser", "project", names.project),  # for --input_query and load jobs
        role("bigquery.readSessionUser", "project", names.project),  # for the Storage Read API
        *((vertex,) if names.vertex else ()),
        role("storage.objectAdmin", "bucket", names.bucket_url),
        role("artifactregistry.reader", "repository", names.repository),
        role("pubsub.subscriber", "subscription", source),
        role("pubsub.viewer", "subscription", source),  # Dataflow looks the subscription up
        *(
            role(f"pubsub.{right}", "topic", topic)  # Dataflow looks the topic up
            for topic in (alerts, *((f"{names.prefix}scores",) if names.scores_topic else ()))
            for right in ("publisher", "viewer")
        ),
        # Pub/Sub itself moves undeliverable alerts from one to the other.
        role("pubsub.publisher", "topic", f"{alerts}-dead-letter", _PUBSUB_AGENT),
        role("pubsub.subscriber", "subscription", review, _PUBSUB_AGENT),
        # Builds of the image write their log, read their source and push the image.
        role("logging.logWriter", "project", names.project, builder),
        role("storage.objectViewer", "bucket", names.bucket_url, builder),
        role("artifactregistry.writer", "repository", names.repository, builder),
    )
