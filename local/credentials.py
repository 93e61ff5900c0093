"""A service account key for the local stack: well formed, new, and registered nowhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from common.writing import writing

TOKEN_PATH = "/token"  # noqa: S105 - a path
"""The path at which the BigQuery emulator of this stack issues access tokens."""


def write_service_account(path: Path, project: str, token_server: str) -> Path:
    """Writes a new service account key to `path`, readable by this user alone.

    Google's libraries find it through GOOGLE_APPLICATION_CREDENTIALS and ask `token_server` for access
    tokens. google-auth also asks iamcredentials.googleapis.com for the regions of the account, in a thread
    of its own; it needs no answer. AnonymousCredentials cannot be named by that variable.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    content = {
        "type": "service_account",
        "project_id": project,
        "private_key_id": "local",
        "private_key": pem.decode(),
        "client_email": f"local@{project}.iam.gserviceaccount.com",
        "client_id": "0",
        "token_uri": f"{token_server}{TOKEN_PATH}",
    }
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with writing(path), open(descriptor, "w") as file:
        json.dump(content, file)
    return path
