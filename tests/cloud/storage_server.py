"""Cloud Storage's JSON API, as much of it as Google's client, Beam and gcloud ask for, kept in memory."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import google_crc32c

from tests.http_server import Raw, Refusal, Request, to_raw


@dataclass
class Blob:
    """One object."""

    data: bytes
    generation: int
    created: datetime
    updated: datetime
    content_type: str = "application/octet-stream"


@dataclass
class Storage:
    """The buckets and what is in them.

    Attributes:
      url: of the server.
      buckets: name -> the bucket's resource, as clients sent it.
      objects: (bucket, name) -> object.
      granted: the permissions that testIamPermissions answers; None grants all.
      forbidden: BUCKET/PREFIX of the objects that nobody may read.
      ahead: how far the server's clock is before that of its clients.
      listed: the names that each answer to a question for lists has had.
    """

    url: str = ""
    buckets: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[tuple[str, str], Blob] = field(default_factory=dict)
    policies: dict[str, Any] = field(default_factory=dict)
    granted: set[str] | None = None
    forbidden: str | None = None
    ahead: timedelta = timedelta(0)
    listed: list[list[str]] = field(default_factory=list)
    _uploads: dict[str, tuple[str, str, str, bytearray]] = field(default_factory=dict)
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """The objects of a bucket."""
        return sorted(name for owner, name in self.objects if owner == bucket and name.startswith(prefix))

    def put(
        self, bucket: str, name: str, data: bytes, content_type: str = "", generation: str = ""
    ) -> dict[str, Any]:
        """Stores an object, where the one that is there has this generation."""
        self._bucket(bucket)
        with self._lock:
            self._check(bucket, name, generation)
            self._count += 1
            moment, kind = self._now(), content_type or "application/octet-stream"
            self.objects[bucket, name] = Blob(data, self._count, moment, moment, kind)
            return self._resource(bucket, name)

    def _check(self, bucket: str, name: str, generation: str) -> None:
        there = self.objects.get((bucket, name))
        if generation and int(generation) != (there.generation if there else 0):
            raise Refusal(412, "FAILED_PRECONDITION", "At least one of the pre-conditions did not hold.")

    def answer(self, request: Request) -> Any:
        """The answer to a request; None where it is not one of Cloud Storage."""
        for methods, pattern, route in ROUTES:
            match = re.fullmatch(pattern, request.path, re.DOTALL)
            if match and request.method in methods.split():
                return route(self, match, request)
        return None

    def _now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def _bucket(self, name: str) -> dict[str, Any]:
        if name not in self.buckets:
            raise Refusal(404, "NOT_FOUND", "The specified bucket does not exist.")
        return self.buckets[name]

    def _blob(self, bucket: str, name: str) -> Blob:
        if (bucket, name) not in self.objects:
            raise Refusal(404, "NOT_FOUND", f"No such object: {bucket}/{name}")
        return self.objects[bucket, name]

    def _resource(self, bucket: str, name: str) -> dict[str, Any]:
        blob = self._blob(bucket, name)
        link = f"{self.url}/storage/v1/b/{bucket}/o/{quote(name, safe='')}"
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{blob.generation}",
            "name": name,
            "bucket": bucket,
            "size": str(len(blob.data)),
            "generation": str(blob.generation),
            "metageneration": "1",
            "contentType": blob.content_type,
            "md5Hash": base64.b64encode(hashlib.md5(blob.data).digest()).decode(),
            "crc32c": base64.b64encode(google_crc32c.Checksum(blob.data).digest()).decode(),
            "timeCreated": blob.created.isoformat().replace("+00:00", "Z"),
            "updated": blob.updated.isoformat().replace("+00:00", "Z"),
            "storageClass": "STANDARD",
            "selfLink": link,
            "mediaLink": f"{self.url}/download/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media",
        }

    def agent(self, match: re.Match[str], request: Request) -> Any:
        return {"kind": "storage#serviceAccount", "email_address": "service-123456@gs-project-accounts"}

    def list_buckets(self, match: re.Match[str], request: Request) -> Any:
        return {"items": list(self.buckets.values())}

    def create_bucket(self, match: re.Match[str], request: Request) -> Any:
        name = request.json["name"]
        if name in self.buckets:
            raise Refusal(409, "ALREADY_EXISTS", "The requested bucket name is not available.")
        given = {"kind": "storage#bucket", "id": name, "metageneration": "1", "projectNumber": "123456"}
        self.buckets[name] = {"location": "US", **request.json, **given}
        return self.buckets[name]

    def get_bucket(self, match: re.Match[str], request: Request) -> Any:
        return self._bucket(match["bucket"])

    def patch_bucket(self, match: re.Match[str], request: Request) -> Any:
        bucket = self._bucket(match["bucket"])
        bucket.update(request.json)
        return bucket

    def delete_bucket(self, match: re.Match[str], request: Request) -> Any:
        if self.names(match["bucket"]):
            raise Refusal(409, "FAILED_PRECONDITION", "The bucket you tried to delete is not empty.")
        self._bucket(match["bucket"])
        del self.buckets[match["bucket"]]
        return Raw(code=204)

    def policy(self, match: re.Match[str], request: Request) -> Any:
        self._bucket(match["bucket"])
        if request.method == "PUT":
            self.policies[match["bucket"]] = request.json
        return self.policies.get(match["bucket"], {"version": 1, "etag": "CAE="})

    def test_permissions(self, match: re.Match[str], request: Request) -> Any:
        self._bucket(match["bucket"])
        asked = request.query.get("permissions", [])
        return {"permissions": [p for p in asked if self.granted is None or p in self.granted]}

    def list_objects(self, match: re.Match[str], request: Request) -> Any:
        self._bucket(match["bucket"])
        prefix, delimiter = request.one("prefix"), request.one("delimiter")
        pattern = request.one("matchGlob", "**")
        items, prefixes = [], set()
        for name in self.names(match["bucket"], prefix):
            if not fnmatch.fnmatchcase(name, pattern):  # which takes * as Cloud Storage takes **
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if found:
                prefixes.add(prefix + head + delimiter)
            else:
                items.append(self._resource(match["bucket"], name))
        self.listed.append([item["name"] for item in items])
        return {"items": items, "prefixes": sorted(prefixes)}

    def get_object(self, match: re.Match[str], request: Request) -> Any:
        if self.forbidden and f"{match['bucket']}/{match['name']}".startswith(self.forbidden):
            raise Refusal(403, "PERMISSION_DENIED", "storage.objects.get is missing")
        blob = self._blob(match["bucket"], match["name"])
        self._check(match["bucket"], match["name"], request.one("ifGenerationMatch"))
        if request.one("alt") != "media" and not request.path.startswith("/download/"):
            return self._resource(match["bucket"], match["name"])
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        first, last = (int(wanted[1]), int(wanted[2] or len(blob.data))) if wanted else (0, len(blob.data))
        part = blob.data[first : last + 1]
        if wanted and not part:
            raise Refusal(416, "OUT_OF_RANGE", "Requested range not satisfiable")
        checksum = base64.b64encode(google_crc32c.Checksum(blob.data).digest()).decode()
        headers = {"Content-Type": blob.content_type, "X-Goog-Hash": f"crc32c={checksum}"}
        headers["X-Goog-Generation"] = str(blob.generation)
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(blob.data)}"
        return Raw(part, headers, 206 if wanted else 200)

    def patch_object(self, match: re.Match[str], request: Request) -> Any:
        self._blob(match["bucket"], match["name"]).updated = self._now()
        return self._resource(match["bucket"], match["name"])

    def delete_object(self, match: re.Match[str], request: Request) -> Any:
        with self._lock:
            self._blob(match["bucket"], match["name"])
            self._check(match["bucket"], match["name"], request.one("ifGenerationMatch"))
            del self.objects[match["bucket"], match["name"]]
        return Raw(code=204)

    def copy_object(self, match: re.Match[str], request: Request) -> Any:
        blob = self._blob(match["bucket"], match["name"])
        resource = self.put(match["to_bucket"], match["to_name"], blob.data, blob.content_type)
        if "/copyTo/" in request.path:
            return resource
        size = str(len(blob.data))
        return {"done": True, "resource": resource, "totalBytesRewritten": size, "objectSize": size}

    def upload(self, match: re.Match[str], request: Request) -> Any:
        bucket, kind = match["bucket"], request.one("uploadType")
        self._bucket(bucket)
        if kind == "media":
            return self.put(bucket, request.one("name"), request.raw, request.headers.get("content-type", ""))
        if kind == "multipart":
            described, data = (body for _, body in _parts(request))
            meta = json.loads(described)
            name = meta.get("name") or request.one("name")
            wanted = request.one("ifGenerationMatch")
            return self.put(bucket, name, data, meta.get("contentType", ""), wanted)
        if request.method == "POST":
            meta = request.json or {}
            session = str(len(self._uploads) + 1)
            name = meta.get("name") or request.one("name")
            self._uploads[session] = (bucket, name, meta.get("contentType", ""), bytearray())
            where = f"{self.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={session}"
            return Raw(headers={"Location": where, "X-GUploader-UploadID": session})
        return self._chunk(request)

    def _chunk(self, request: Request) -> Any:
        bucket, name, content_type, data = self._uploads[request.one("upload_id")]
        data += request.raw
        span = request.headers.get("content-range", "")
        if span.endswith("/*"):
            return Raw(headers={"Range": f"bytes=0-{len(data) - 1}"} if data else {}, code=308)
        return self.put(bucket, name, bytes(data), content_type)

    def batch(self, match: re.Match[str], request: Request) -> Any:
        answers = []
        for headers, body in _parts(request):
            request_head, _, content = body.partition(b"\r\n\r\n" if b"\r\n\r\n" in body else b"\n\n")
            line = request_head.decode().splitlines()[0]
            code, data = self.dispatch(line, content)
            head = f"Content-Type: application/http\r\nContent-ID: <response-{headers.get('content-id')}>"
            inner = f"HTTP/1.1 {code} OK\r\nContent-Type: application/json\r\n\r\n{data.decode()}"
            answers.append(f"--answer\r\n{head}\r\n\r\n{inner}\r\n")
        text = "".join(answers) + "--answer--\r\n"
        return Raw(text.encode(), {"Content-Type": "multipart/mixed; boundary=answer"})

    def dispatch(self, line: str, content: bytes) -> tuple[int, bytes]:
        """Answers one request of a batch."""
        from urllib.parse import parse_qs, unquote, urlsplit

        method, target, _ = line.split(" ", 2)
        url = urlsplit(target)
        inner = Request(method, unquote(url.path), parse_qs(url.query), {}, content.strip())
        answer = to_raw(lambda: self.answer(inner))
        return answer.code, answer.data


def _parts(request: Request) -> list[tuple[dict[str, str], bytes]]:
    """The parts of a multipart body: headers and content."""
    # gcloud puts the boundary into single quotes, which email's parser would keep.
    boundary = request.headers["content-type"].partition("boundary=")[2].split(";")[0].strip("\"' ")
    found = []
    for part in request.raw.split(b"--" + boundary.encode())[1:-1]:
        head, _, body = part.lstrip(b"\r\n").partition(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n")
        pairs = (line.partition(":") for line in head.decode().splitlines())
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        found.append((headers, body.removesuffix(b"\n").removesuffix(b"\r")))
    return found


_BUCKET = r"/storage/v1/b/(?P<bucket>[^/]+)"
_OBJECT = rf"{_BUCKET}/o/(?P<name>.+?)"
ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("GET", r"/storage/v1/b", Storage.list_buckets),
    ("POST", r"/storage/v1/b", Storage.create_bucket),
    ("GET", r"/storage/v1/projects/[^/]+/serviceAccount", Storage.agent),
    ("GET", _BUCKET, Storage.get_bucket),
    ("PATCH PUT", _BUCKET, Storage.patch_bucket),
    ("DELETE", _BUCKET, Storage.delete_bucket),
    ("GET PUT", rf"{_BUCKET}/iam", Storage.policy),
    ("GET", rf"{_BUCKET}/iam/testPermissions", Storage.test_permissions),
    ("GET", rf"{_BUCKET}/o", Storage.list_objects),
    (
        "POST",
        rf"{_OBJECT}/(copyTo|rewriteTo)/b/(?P<to_bucket>[^/]+)/o/(?P<to_name>.+)",
        Storage.copy_object,
    ),
    ("GET", rf"(/download)?{_OBJECT}", Storage.get_object),
    ("PATCH", _OBJECT, Storage.patch_object),
    ("DELETE", _OBJECT, Storage.delete_object),
    ("POST PUT", rf"(/resumable)?/upload{_BUCKET}/o", Storage.upload),
    ("POST", r"/batch(/storage/v1)?", Storage.batch),
)
