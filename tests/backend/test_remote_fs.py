"""The fsspec medium on filesystems that need no server, and what lying remotes turn into."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from dvk.backend.contract import Backend, KeyExists, KeyMissing, Listed
from dvk.backend.remote_errors import translate_remote
from dvk.backend.remote_fs import FsspecBackend, FsspecMedium
from dvk.backend.s3 import _total_of
from dvk.backend.text import printable, redact
from dvk.errors import (
    Corrupt,
    DvkError,
    NotFound,
    RemoteDenied,
    RemoteError,
    RemoteUnreachable,
    StorageFull,
)
from dvk.testing.backend_suite import BackendSuite


class TestFsspecMemory(BackendSuite):
    @pytest.fixture(autouse=True)
    def _medium(self) -> None:
        self.fs = MemoryFileSystem(skip_instance_cache=True)
        self.fs.store = {}
        self.fs.pseudo_dirs = [""]

    def make(self) -> Backend:
        return FsspecBackend(lambda: FsspecMedium(self.fs, "/team/x"), name="memory://team/x")


class TestFsspecWithoutAtomicPut(BackendSuite):
    """The way of ssh: objects written aside and moved."""

    @pytest.fixture(autouse=True)
    def _root(self, tmp_path: Path) -> None:
        self.root = str(tmp_path)

    def make(self) -> Backend:
        fs = LocalFileSystem(skip_instance_cache=True)
        return FsspecBackend(lambda: FsspecMedium(fs, self.root, atomic_put=False), name="ssh://host/x")


class LyingMedium:
    """Answers what it is told to."""

    def __init__(self, data: bytes, total: int | None, size: int | None) -> None:
        self.data, self.total, self.size = data, total, size

    def head(self, key: str) -> int | None:
        return self.size

    def read(self, key: str, limit: int) -> tuple[bytes, int | None]:
        return self.data, self.total

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int | None]:
        return self.data, self.total

    def write(self, key: str, parts: object, *, create_only: bool) -> None:
        raise client_error("ConditionalRequestConflict", 409)

    def walk(self, prefix: str) -> Iterator[Listed]:
        yield Listed("p/one", 1)
        raise client_error("SlowDown", 503)

    def remove(self, key: str) -> None:
        raise FileNotFoundError(key)

    def close(self) -> None:
        pass


def client_error(code: str, status: int = 400, headers: dict[str, str] | None = None, **error: str) -> OSError:
    """An error as s3fs raises it: its own guess, caused by botocore's."""
    response: Any = {
        "Error": {"Code": code, "Message": f"about {code}"} | error,
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers or {}},
    }
    e = OSError(22, "Invalid argument")
    e.__cause__ = ClientError(response, "GetObject")
    return e


def lying(data: bytes, *, total: int | None, size: int | None = 100) -> FsspecBackend:
    return FsspecBackend(lambda: LyingMedium(data, total, size), name="s3://acme/x")


@pytest.mark.parametrize("data", [b"", b"x" * 9, b"x" * 11])
@pytest.mark.parametrize("total", [100, None])
def test_a_range_of_the_wrong_length_is_never_returned(data: bytes, total: int | None) -> None:
    with pytest.raises(RemoteError) as caught:
        lying(data, total=total).get_range("p/x", 0, 10)
    assert caught.value.transient


@pytest.mark.parametrize("total", [100, None])
def test_a_short_answer_at_the_real_end_is_corrupt(total: int | None) -> None:
    with pytest.raises(Corrupt):
        lying(b"x" * 5, total=total).get_range("p/x", 95, 10)


def test_a_right_length_of_a_too_short_object_is_still_corrupt() -> None:
    with pytest.raises(Corrupt):
        lying(b"x" * 10, total=5).get_range("p/x", 0, 10)


@pytest.mark.parametrize("data", [b"x" * 9, b"x" * 11])
def test_a_whole_object_of_the_wrong_length_is_never_returned(data: bytes) -> None:
    with pytest.raises(RemoteError):
        lying(data, total=10).get("p/x", max_bytes=20)


def test_a_conflict_on_create_is_taken_or_transient_by_what_is_there() -> None:
    with pytest.raises(KeyExists):
        lying(b"", total=None, size=5).put("j/x", [b"1"], create_only=True)
    with pytest.raises(RemoteError) as caught:
        lying(b"", total=None, size=None).put("j/x", [b"1"], create_only=True)
    assert caught.value.transient


def test_a_listing_that_breaks_raises_and_does_not_end() -> None:
    rows = lying(b"", total=None).list("p/")
    assert next(rows).key == "p/one"
    with pytest.raises(RemoteError) as caught:
        next(rows)
    assert caught.value.transient


@pytest.mark.parametrize("said", ["bytes 1-10/100", "bytes 0-8/100", "bytes 0-10/100"])
def test_an_answer_about_another_range_is_refused(said: str) -> None:
    with pytest.raises(RemoteError, match="another range"):
        _total_of({"ContentRange": said}, 0, 10)


@pytest.mark.parametrize("said", [None, "", "bytes */100", "items 0-9/100", "bytes 0-9/*"])
def test_a_server_that_ignores_ranges_is_named(said: str | None) -> None:
    with pytest.raises(RemoteError, match="ignores ranges"):
        _total_of({"ContentRange": said}, 0, 10)


@pytest.mark.parametrize(
    ("error", "category", "says"),
    [
        (client_error("NoSuchKey", 404), KeyMissing, "no such object"),
        (client_error("404", 404), KeyMissing, "no such object"),
        (client_error("NoSuchBucket", 404, BucketName="acme"), NotFound, "no bucket 'acme'"),
        (client_error("AccessDenied", 403), RemoteDenied, "AccessDenied"),
        (client_error("403", 403), RemoteDenied, "403"),
        (client_error("ExpiredToken"), RemoteDenied, "aws sso login --profile team"),
        (client_error("InvalidAccessKeyId", 403), RemoteDenied, "access key"),
        (client_error("SignatureDoesNotMatch", 403), RemoteDenied, "secret key"),
        (
            client_error("RequestTimeTooSkewed", 403, {"date": formatdate(1_000_000_000)}),
            RemoteError,
            "minutes ahead of the server's",
        ),
        (client_error("RequestTimeTooSkewed", 403), RemoteError, "clock"),
        (
            client_error("PermanentRedirect", 301, {"x-amz-bucket-region": "eu-west-1"}),
            RemoteError,
            "eu-west-1",
        ),
        (client_error("AuthorizationHeaderMalformed", 400, Region="eu-north-1"), RemoteError, "eu-north-1"),
        (client_error("407", 407), RemoteDenied, "NO_PROXY"),
        (client_error("QuotaExceeded", 403), StorageFull, "QuotaExceeded"),
        (client_error("NotImplemented", 501), RemoteError, "NotImplemented"),
        (NoCredentialsError(), RemoteDenied, "aws configure --profile team"),
        (EndpointConnectionError(endpoint_url="http://x"), RemoteUnreachable, "no answer"),
        (ReadTimeoutError(endpoint_url="http://x"), RemoteUnreachable, "no answer"),
        (ConnectionResetError(104, "reset"), RemoteUnreachable, "no answer"),
        (socket.gaierror(-2, "Name or service not known"), RemoteUnreachable, "not known"),
        (TimeoutError(), RemoteUnreachable, "no answer"),
        (ssl.SSLCertVerificationError("self-signed"), RemoteError, "AWS_CA_BUNDLE"),
        (FileNotFoundError("x"), KeyMissing, "no such object"),
        (PermissionError("x"), RemoteDenied, "permission"),
        (ValueError("odd"), RemoteError, "ValueError: odd"),
    ],
)
def test_foreign_errors_become_what_one_can_act_on(error: Exception, category: type, says: str) -> None:
    found = translate_remote(error, name="s3://acme/churn", key="p/x", profile="team")
    assert type(found) is category
    assert says in f"{found} {found.hint}"
    assert isinstance(found, DvkError) and "s3://acme/churn" in found.subject


@pytest.mark.parametrize("code", ["SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable", "503", "429"])
def test_busy_servers_are_transient(code: str) -> None:
    found = translate_remote(client_error(code, 503), name="s3://a/b")
    assert isinstance(found, RemoteError) and found.transient


@pytest.mark.parametrize("code", ["AccessDenied", "ExpiredToken", "RequestTimeTooSkewed", "NotImplemented2"])
def test_refusals_are_not_repeated(code: str) -> None:
    found = translate_remote(client_error(code, 400), name="s3://a/b")
    assert isinstance(found, RemoteError) and not found.transient


def test_a_precondition_is_a_taken_key_only_on_create() -> None:
    error = client_error("PreconditionFailed", 412)
    assert isinstance(translate_remote(error, name="s3://a", key="j/x", create_only=True), KeyExists)
    assert not isinstance(translate_remote(error, name="s3://a", key="j/x"), KeyExists)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:SECRET@host/x",
        "GET /x?X-Amz-Signature=SECRET&a=1",
        "X-Amz-Credential=SECRET",
        "X-Amz-Security-Token: SECRET",
        "aws_secret_access_key = SECRET",
        "'secret': 'SECRET'".replace("'secret': ", "secret="),
        "Authorization: AWS4-HMAC-SHA256 Credential=SECRET, Signature=SECRET",
        "Bearer SECRET",
        "https://x/y?sv=1&sig=SECRET",
        "password=SECRET",
        "AccountKey=SECRET;EndpointSuffix=x",
    ],
)
def test_secrets_do_not_pass_into_messages(text: str) -> None:
    assert "SECRET" not in redact(f"before {text}")
    assert redact(f"before {text}").startswith("before ")
    found = translate_remote(ValueError(text), name="s3://a/b")
    assert "SECRET" not in str(found)


def test_what_the_caller_was_handling_is_no_cause() -> None:
    """A search for something that was missing breaks off: that is a broken connection, not a missing object."""
    try:
        try:
            missing = client_error("NoSuchKey", 404)
            raise translate_remote(missing, name="s3://a", key="l/x") from missing
        except KeyMissing:
            raise ConnectionResetError("reset by peer")  # noqa: B904
    except ConnectionResetError as error:
        found = translate_remote(error, name="s3://a", key="p/x")
    assert isinstance(found, RemoteUnreachable) and found.subject == "s3://a/p/x"


def test_foreign_text_is_one_short_printable_line() -> None:
    assert redact("a\n b\x1b[31m\tc") == "a b\\x1b[31m c"
    assert len(redact("x" * 10_000)) == 300
    assert printable(os.fsdecode(b"\xff\x00")).isprintable()
