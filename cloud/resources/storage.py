"""The Cloud Storage bucket."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from google.api_core.exceptions import Conflict, NotFound

from cloud.resources.base import LABEL, MISSING, Clients, Resource, ResourceError, State, has_label

PATHS: Final = {
    "model": "model artifacts",
    "templates": "Flex template specs",
    "staging": "staged packages and pipelines; running jobs read them",
    "temp": "what jobs leave behind; removed after a week",
}
TEMP_DAYS: Final = 7


@dataclass(frozen=True)
class Bucket(Resource):
    """A private bucket with uniform access; `name` is "gs://BUCKET".

    Attributes:
      location: region.
    """

    kind: ClassVar[str] = "bucket"

    location: str = "us-central1"

    @property
    def bucket(self) -> str:
        """The name without gs://."""
        return self.name.removeprefix("gs://")

    def inspect(self, clients: Clients) -> State:
        """Location, access and the rule that empties temp/.

        The label is no part of it: a bucket that another hand made may be used, and must not become one that
        `delete` empties.
        """
        found = clients.storage.lookup_bucket(self.bucket)
        if found is None:
            return MISSING
        differences = []
        if (found.location or "").upper() != self.location.upper():
            differences.append(f"location is {found.location}, declared {self.location}; cannot be changed")
        if not found.iam_configuration.uniform_bucket_level_access_enabled:
            differences.append("uniform bucket-level access is off")
        if found.iam_configuration.public_access_prevention != "enforced":
            differences.append("public access prevention is not enforced")
        if not any(_is_temp_rule(rule) for rule in found.lifecycle_rules):
            differences.append(f"no rule deletes temp/ after {TEMP_DAYS} days")
        return State.of(differences)

    def create(self, clients: Clients) -> None:
        """Makes the bucket."""
        bucket = clients.storage.bucket(self.bucket)
        bucket.labels = LABEL
        self._declare(bucket)
        try:
            clients.storage.create_bucket(bucket, location=self.location)
        except Conflict as error:
            raise ResourceError(
                f"bucket {self.name}: the name is taken, bucket names are shared by everyone. Give another "
                "with --bucket."
            ) from error

    def repair(self, clients: Clients, state: State) -> None:
        """Sets everything but location and label."""
        fixed = [detail for detail in state.details if "cannot be changed" in detail]
        if fixed:
            raise ResourceError(
                f"bucket {self.name}: {fixed[0]}. Give --region to match, or another --bucket."
            )
        bucket = clients.storage.get_bucket(self.bucket)
        self._declare(bucket)
        bucket.patch()

    def owned(self, clients: Clients) -> bool:
        """By its label."""
        return has_label(clients.storage.get_bucket(self.bucket).labels)

    def delete(self, clients: Clients) -> None:
        """Removes the bucket and every object in it."""
        with contextlib.suppress(NotFound):
            bucket = clients.storage.get_bucket(self.bucket)
            for blob in clients.storage.list_blobs(self.bucket):
                with contextlib.suppress(NotFound):
                    blob.delete()
            bucket.delete()

    def remedy(self) -> str:
        """Storage's administrator."""
        return "roles/storage.admin"

    def _declare(self, bucket: Any) -> None:
        bucket.iam_configuration.uniform_bucket_level_access_enabled = True
        bucket.iam_configuration.public_access_prevention = "enforced"
        # Deleted temporary files would be kept, and paid for, another week.
        bucket.soft_delete_policy.retention_duration_seconds = 0
        rules = [rule for rule in bucket.lifecycle_rules if not _is_temp_rule(rule)]
        rules.append(
            {"action": {"type": "Delete"}, "condition": {"age": TEMP_DAYS, "matchesPrefix": ["temp/"]}}
        )
        bucket.lifecycle_rules = rules


def _is_temp_rule(rule: Any) -> bool:
    condition = rule.get("condition", {})
    return (
        rule.get("action", {}).get("type") == "Delete"
        and condition.get("matchesPrefix") == ["temp/"]
        and int(condition.get("age", 0)) == TEMP_DAYS
    )
