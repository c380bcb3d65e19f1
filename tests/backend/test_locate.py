"""URLs of remotes, good and hostile, and what opens behind them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvk.backend.local import LocalBackend
from dvk.backend.locate import RemoteSettings, RemoteUrl, open_backend, parse_remote_url
from dvk.errors import StorageError, UsageError


@pytest.mark.parametrize(
    ("url", "parsed", "canonical"),
    [
        ("/mnt/team", RemoteUrl("file", "", "/mnt/team"), "file:///mnt/team"),
        ("/mnt//team/./x/", RemoteUrl("file", "", "/mnt/team/x"), "file:///mnt/team/x"),
        ("/mnt/a b#c?d::e", RemoteUrl("file", "", "/mnt/a b#c?d::e"), "file:///mnt/a b#c?d::e"),
        ("file:///mnt/team", RemoteUrl("file", "", "/mnt/team"), "file:///mnt/team"),
        ("file://localhost/mnt", RemoteUrl("file", "", "/mnt"), "file:///mnt"),
        ("file:///a%20b", RemoteUrl("file", "", "/a%20b"), "file:///a%20b"),
        ("s3://acme", RemoteUrl("s3", "acme", ""), "s3://acme"),
        ("s3://acme/", RemoteUrl("s3", "acme", ""), "s3://acme"),
        ("S3://acme/churn/v2/", RemoteUrl("s3", "acme", "churn/v2"), "s3://acme/churn/v2"),
        ("gcs://b/x", RemoteUrl("gs", "b1"[:1], "x"), None),
        ("gcs://bucket/x", RemoteUrl("gs", "bucket", "x"), "gs://bucket/x"),
        ("abfss://container/x", RemoteUrl("az", "container", "x"), "az://container/x"),
        ("sftp://host:2222/srv/x", RemoteUrl("ssh", "host:2222", "srv/x"), "ssh://host:2222/srv/x"),
        ("ssh://[::1]:22/srv", RemoteUrl("ssh", "[::1]:22", "srv"), "ssh://[::1]:22/srv"),
        (
            "https://data.example.org/x",
            RemoteUrl("https", "data.example.org", "x"),
            "https://data.example.org/x",
        ),
    ],
)
def test_good_urls_have_one_canonical_form(url: str, parsed: RemoteUrl, canonical: str | None) -> None:
    if canonical is None:
        with pytest.raises(UsageError):  # a bucket of one letter
            parse_remote_url(url)
        return
    assert parse_remote_url(url) == parsed
    assert str(parsed) == canonical
    assert parse_remote_url(canonical) == parsed


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "empty"),
        ("-oProxyCommand=x", "dash"),
        ("relative/path", "absolute path"),
        ("../x", "absolute path"),
        ("C:\\data", "absolute path"),
        ("/", "top of the filesystem"),
        ("file:///", "top of the filesystem"),
        ("/mnt/../etc", r"\.\."),
        ("file:///mnt/../etc", r"\.\."),
        ("file://server/share", "no host"),
        ("file:relative", "slashes"),
        ("s3:/bucket/x", "slashes"),
        ("s3://", "missing"),
        ("s3:///x", "missing"),
        ("s3://b u/x", "cannot be the name"),
        ("s3://-x/y", "cannot be the name"),
        ("s3://bucket/a//b", "part"),
        ("s3://bucket/../b", "part"),
        ("s3://bucket/./b", "part"),
        ("s3://bucket/x?versionId=1", "options"),
        ("s3://bucket/x#y", "options"),
        ("s3://key:secret@bucket/x", "user or password"),
        ("ssh://-oProxyCommand=x/y", "cannot be the name"),
        ("ssh://me@host/x", "user or password"),
        ("s3://bucket/x\n", "control"),
        ("s3://bucket/\x1b[31m", "control"),
        ("/mnt/\x07", "control"),
        ("filecache::s3://bucket/x", "chains"),
        ("reference::https://x/y", "chains"),
        ("simplecache://x/y", "unknown scheme"),
        ("memory://x", "unknown scheme"),
        ("reference://x", "unknown scheme"),
        ("dvk://x", "unknown scheme"),
        ("s3://bucket/" + "x" * 401, "longer"),
    ],
)
def test_hostile_and_mistyped_urls_are_refused_by_reason(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_remote_url(url)
    shown = f"{caught.value}{caught.value.hint}"
    assert "secret" not in shown
    assert shown.isprintable()


@given(st.text(max_size=60) | st.from_regex(r"(s3|file|ssh|gs|https?)://[a-z@:/.?#%\[\]-]{0,30}", fullmatch=True))
def test_any_text_is_parsed_to_a_fixed_point_or_refused(text: str) -> None:
    try:
        url = parse_remote_url(text)
    except UsageError:
        return
    assert parse_remote_url(str(url)) == url
    assert str(url).isprintable()
    assert ".." not in url.path.split("/")
    assert "@" not in url.authority


def test_a_path_opens_our_own_local_backend(tmp_path: object) -> None:
    backend = open_backend(f"file://{tmp_path}/r", settings=RemoteSettings(), environ={})
    assert isinstance(backend, LocalBackend)
    assert backend.root == f"{tmp_path}/r"


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("s3://bucket/x", "s3fs"),
        ("gs://bucket/x", "gcsfs"),
        ("az://cont/x", "adlfs"),
        ("ssh://h/x", "sshfs"),
        ("sftp://h/x", "sshfs"),
        ("hdfs://h/x", "pyarrow"),
        ("https://h/x", "aiohttp"),
    ],
)
def test_a_missing_library_is_named(url: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=package) as caught:
        open_backend(url, settings=RemoteSettings(), environ={})
    assert caught.value.hint.startswith(f"pip install {package}")
    assert ("dvk[fast]" in caught.value.hint) == url.startswith(("s3", "gs", "az"))


def test_http_is_read_only() -> None:
    backend = open_backend("https://data.example.org/x", settings=RemoteSettings(), environ={})
    for call in (lambda: backend.put("a", [b""]), lambda: backend.delete("a")):
        with pytest.raises(StorageError, match="only be read"):
            call()


@pytest.mark.parametrize(
    "wrong",
    [
        {"addressing": "dns"},
        {"checksum": "off"},
        {"read_timeout_s": 0},
        {"max_concurrency": -1},
        {"endpoint_url": "minio:9000"},
        {"endpoint_url": "https://me:pw@host"},
        {"endpoint_url": "file:///x"},
    ],
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        RemoteSettings(**wrong)  # type: ignore[arg-type]


def test_opening_an_s3_remote_does_not_import_s3fs_yet() -> None:
    code = (
        "import sys; from dvk.backend.locate import *;"
        "open_backend('s3://acme/x', settings=RemoteSettings(), environ={});"
        "sys.exit(any(m in sys.modules for m in ('s3fs', 'botocore', 'aiohttp', 'fsspec')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
