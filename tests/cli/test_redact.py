"""Secrets do not leave; ordinary text does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from dvk.backend.aws_files import Aws, Keys
from dvk.cli.redact import Redactor
from dvk.workspace.git_program import GitProgram
from dvk.workspace.repo import Workspace

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
ENVIRON = {
    "AWS_ACCESS_KEY_ID": "weird-key-id",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEBYaDK",
    "AZURE_STORAGE_ACCOUNT_KEY": "YWJjZGVmZ2hpamtsbW5vcA==",
    "GITHUB_TOKEN": "ghp_0123456789",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/secrets/token",
    "DB_PASSWORD": "short",
    "HOME": "/home/somebody",
    "AWS_REGION": "eu-central-1",
}
clean = Redactor(ENVIRON).clean


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://key:pw@bucket/x", "s3://***@bucket/x"),
        ("http://user@host:80/x", "http://***@host:80/x"),
        ("https://h/b?X-Amz-Signature=3f&X-Amz-Date=1", "https://h/b?X-Amz-Signature=***&X-Amz-Date=1"),
        ("X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F2026%2Fs3", "X-Amz-Credential=***"),
        ("x-amz-security-token=abc/def+g==", "x-amz-security-token=***"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=a/b, Signature=c", "Authorization: ***"),
        ("{'Authorization': 'Bearer abcdefghijk'}", "{'Authorization': '***'}"),
        ("sent Bearer abcdefghijk to it", "sent Bearer *** to it"),
        ('{"secret_access_key": "abc"}', '{"secret_access_key": "***"}'),
        ("key AKIAIOSFODNN7EXAMPLE is unknown", "key *** is unknown"),
        (f"tried {SECRET}!", "tried ***!"),
        ("secret=wJalrXUtnFEMI%2FK7MDENG%2BbPxRfiCYEXAMPLEKEY&x", "secret=***&x"),
        ("weird-key-id ghp_0123456789 FwoGZXIvYXdzEBYaDK", "*** *** ***"),
        ("YWJjZGVmZ2hpamtsbW5vcA==", "***"),
    ],
)
def test_secrets_are_replaced(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "data/train.csv: modified, 28 MB new of 1.04 GB",
        "s3://acme/churn in eu-central-1",
        "mail me@example.org about http://host/x",
        "Signature: does not match",
        "SignatureDoesNotMatch: the request signature we calculated does not match",
        "needs authorization: ask the owner",
        "a short one is no secret: short",
        "/var/run/secrets/token is unreadable",
        "origin file:///mnt/team/a@b",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert clean(text) == text


@given(st.text(), st.text())
def test_an_environment_secret_never_survives(before: str, after: str) -> None:
    assert SECRET not in clean(before + SECRET + after)


@given(st.text(max_size=200))
def test_redaction_is_stable(text: str) -> None:
    once = clean(text)
    assert clean(once) == once


@pytest.mark.parametrize("form", [repr, pretty_repr], ids=["plain", "rich"])
def test_a_record_that_holds_secrets_shows_none(tmp_path: Path, form: Callable[[object], str]) -> None:
    """A record may end up in a message or a report of a bug."""
    (tmp_path / "dvk.toml").write_text("format = 1\n")
    workspace = Workspace.discover(str(tmp_path), environ=ENVIRON, store=str(tmp_path / "store"))
    keys = Keys("weird-key-id", SECRET, "FwoGZXIvYXdzEBYaDK")
    shown = form([workspace, GitProgram("/bin/git", ENVIRON), Aws(keys=keys)])
    assert "/bin/git" in shown and "region" in shown and str(tmp_path) in shown
    assert not [name for name, value in ENVIRON.items() if value in shown]
