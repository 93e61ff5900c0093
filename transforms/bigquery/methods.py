"""The ways in which rows reach BigQuery: their names, and what each of them needs."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

Method = Literal["storage_arrow", "file_loads", "storage_write_api"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)


class Needs(NamedTuple):
    """Needs of a method at launch.

    Attributes:
      is_beams: whether it is a method of Beam's WriteToBigQuery, which takes no other endpoint than Google's.
      temp_location: whether it stages files there.
      load_jobs: whether it runs load jobs, for which the workers need roles/bigquery.jobUser.
      java: whether Java expands it at launch. The image of the templates has no Java: every worker would pull
        a Java runtime that the launcher alone needs, and the launcher would still have to fetch the expansion
        service from Maven, which needs a public address.
    """

    is_beams: bool = True
    temp_location: bool = False
    load_jobs: bool = False
    java: bool = False


NEEDS: Final[dict[Method, Needs]] = {
    "storage_arrow": Needs(is_beams=False),
    "file_loads": Needs(temp_location=True, load_jobs=True),
    "storage_write_api": Needs(java=True),
}
