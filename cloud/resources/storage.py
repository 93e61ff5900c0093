"""The Cloud Storage bucket."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from google.api_core.exceptions import Conflict, NotFound

from cloud.resources.base import (
    LABEL,
    MISSING,
    Clients,
    Resource,
    ResourceError,
    State,
    differences,
    has_label,
)

TEMP_DAYS: Final = 7


@dataclass(frozen=True)
class Bucket(Resource):
    """A private bucket with uniform access; `name` is "gs://BUCKET".

    Attributes:
      location: region.
      kms_key: full name of the key that encrypts new objects; Google's own when empty.
    """

    kind: ClassVar[str] = "bucket"
    creator_role: ClassVar[str] = "roles/storage.admin"

    location: str = "us-central1"
    kms_key: str = ""

    @property
    def bucket(self) -> str:
        """The name without gs://."""
        return self.name.removeprefix("gs://")

    def inspect(self, clients: Clients) -> State:
        """Compares location, key, access and the rule that empties temp/.

        It does not compare the label. A bucket that somebody else made may be used, but `delete` must never
        empty it.
        """
        bucket = clients.storage.lookup_bucket(self.bucket)
        if bucket is None:
            return MISSING
        access = bucket.iam_configuration
        actual = {
            "location": (bucket.location or "").lower(),
            "key": bucket.default_kms_key_name,
            "uniform bucket-level access": access.uniform_bucket_level_access_enabled,
            "public access prevention": access.public_access_prevention,
            "days in temp/": TEMP_DAYS
            if any(_is_temp_rule(rule) for rule in bucket.lifecycle_rules)
            else None,
        }
        declared = {
            "location": self.location.lower(),
            "uniform bucket-level access": True,
            "public access prevention": "enforced",
            "days in temp/": TEMP_DAYS,
            **({"key": self.kms_key} if self.kms_key else {}),
        }
        return State.of(differences(actual, declared, fixed=("location",)))

    def create(self, clients: Clients) -> None:
        """Makes the bucket."""
        bucket = clients.storage.bucket(self.bucket)
        bucket.labels = LABEL
        self._declare(bucket)
        try:
            clients.storage.create_bucket(bucket, location=self.location)
        except Conflict as error:
            raise ResourceError(
                f"bucket {self.name}: the name is taken, bucket names are unique in the world. Pass another "
                "--bucket."
            ) from error

    def repair(self, clients: Clients, state: State) -> None:
        """Sets everything but location and label."""
        state.refuse_fixed(f"bucket {self.name}", "Pass the --region of the bucket, or another --bucket.")
        bucket = clients.storage.get_bucket(self.bucket)
        self._declare(bucket)
        bucket.patch()

    def owned(self, clients: Clients) -> bool:
        """Looks for the label."""
        return has_label(clients.storage.get_bucket(self.bucket).labels)

    def delete(self, clients: Clients) -> None:
        """Removes the bucket and every object in it."""
        with contextlib.suppress(NotFound):
            bucket = clients.storage.get_bucket(self.bucket)
            for blob in clients.storage.list_blobs(self.bucket):
                with contextlib.suppress(NotFound):
                    blob.delete()
            bucket.delete()

    def _declare(self, bucket: Any) -> None:
        if self.kms_key:
            bucket.default_kms_key_name = self.kms_key
        bucket.iam_configuration.uniform_bucket_level_access_enabled = True
        bucket.iam_configuration.public_access_prevention = "enforced"
        # Without this, deleted temporary files would be kept, and paid for, another week.
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
