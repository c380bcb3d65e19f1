"""A `credential_process` that fails is named as what it is, and nothing that it says is quoted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dvk.backend.locate import RemoteSettings, open_backend
from dvk.errors import RemoteDenied

SECRET = "hunter2"
PROGRAMS = {
    "ends with an error": f"echo my-{SECRET} >&2; exit 3",
    "no JSON": f"echo not json {SECRET}",
    "no UTF-8": "printf '\\377'",
    "another version": """echo '{"Version": 7}'""",
    "no key": f"""echo '{{"Version": 1, "AccessKeyId": "{SECRET}"}}'""",
    "a list": "echo '[1]'",
}


@pytest.mark.parametrize("library", ["fsspec", "auto"])
@pytest.mark.parametrize("what", [*PROGRAMS, "missing"])
def test_what_fails_is_named_and_nothing_quoted(tmp_path: Path, what: str, library: str) -> None:
    program = tmp_path / "keys"
    if what != "missing":
        program.write_text(f"#!/bin/sh\n{PROGRAMS[what]}\n")
        program.chmod(0o755)
    (tmp_path / "config").write_text(f"[profile data]\ncredential_process = {program}\n")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    environ = {
        **kept,
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_PROFILE": "data",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "DVK_BACKEND": library,
    }
    backend = open_backend("s3://bucket/x", settings=RemoteSettings(), environ=environ)
    try:
        with pytest.raises(RemoteDenied) as caught:
            backend.stat("dvk.json")
    finally:
        backend.close()
    said = f"{caught.value} {caught.value.hint}"
    assert "credential_process" in said and SECRET not in said
