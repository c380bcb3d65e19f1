"""Which way to a bucket is taken, what obstore is told, and what becomes of its refusals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore")

from dvk.backend.aws_files import read_aws
from dvk.backend.contract import Backend, KeyMissing
from dvk.backend.locate import RemoteSettings, library_of, open_backend, parse_remote_url
from dvk.backend.obstore_medium import SMALL_PUT_BYTES, ObstoreMedium, Refused
from dvk.backend.obstore_options import Plan, Unfit, plan_azure, plan_gcs, plan_s3
from dvk.backend.remote_errors import translate_remote
from dvk.backend.remote_fs import FsspecBackend
from dvk.backend.wrappers import RetryBackend
from dvk.errors import DvkError, NotFound, RemoteDenied, RemoteError, RemoteUnreachable, UsageError
from dvk.testing.http_proxy import HttpProxy
from dvk.testing.s3server import S3Address, aws_env

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "very-secret", "AWS_REGION": "eu-west-1"}
NO_FILES = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
ENVIRON = KEYS | NO_FILES


@pytest.fixture(scope="module")
def bucket(s3: S3Address) -> str:
    name = f"obstore{os.getpid()}"
    s3.create_bucket(name)
    return name


@pytest.fixture
def proxy(s3: S3Address) -> Iterator[HttpProxy]:
    with HttpProxy(s3.port) as proxy:
        yield proxy


def through(proxy: HttpProxy, bucket: str, **settings: Any) -> tuple[Backend, ObstoreMedium]:
    url = f"s3://{bucket}/{time.monotonic_ns():x}"
    backend = open_backend(url, settings=RemoteSettings(**settings), environ=aws_env(proxy.endpoint_url))
    assert isinstance(backend, FsspecBackend)
    medium = backend._open()
    assert isinstance(medium, ObstoreMedium)
    return backend, medium


# ------------------------------------------------------------ the two ways


def test_small_things_never_import_s3fs(s3: S3Address, bucket: str) -> None:
    """A push with nothing to do, and a pull, do without its 300 ms."""
    code = (
        "import sys, os; from dvk.backend.locate import *;"
        f"b = open_backend('s3://{bucket}/lean', settings=RemoteSettings(), environ=os.environ);"
        f"b.put('j/x', [b'1' * {SMALL_PUT_BYTES}]); b.get('j/x', max_bytes={SMALL_PUT_BYTES});"
        "b.get_range('j/x', 5, 9);"
        "assert b.stat('j/none') is None; list(b.list('j/')); b.put(os.urandom(8).hex(), [b'1'], create_only=True);"
        "sys.exit(any(m in sys.modules for m in ('s3fs', 'botocore', 'aiohttp', 'fsspec')))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | s3.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_listing_of_a_longer_prefix_reads_only_what_it_has_to(proxy: HttpProxy, bucket: str) -> None:
    """A folder of 2,100 records has three pages; what starts with one letter more lies in one or two of them."""
    backend, medium = through(proxy, bucket)
    keys = [f"j/{i:04}{end}" for i in range(1050) for end in ("", ".ok")]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: backend.put(key, [b"1"]), keys))
    proxy.requests.clear()
    for prefix in ("j/0500", "j/0500.", "j/1049.ok", "j/05", "j/1", "j/none", "j/00000"):
        assert sorted(r.key for r in backend.list(prefix)) == sorted(k for k in keys if k.startswith(prefix)), prefix
    assert medium._slow_medium is not None  # for the one of a single letter
    proxy.requests.clear()
    assert [r.key for r in backend.list("j/0500")] == ["j/0500", "j/0500.ok"]
    assert len(proxy.requests) == 1
    backend.close()


def test_large_uploads_go_the_way_that_notices_a_stall(proxy: HttpProxy, bucket: str) -> None:
    backend, medium = through(proxy, bucket)
    backend.put("p/small", [b"1" * SMALL_PUT_BYTES])
    assert medium._slow_medium is None
    backend.put("p/large", [b"1" * SMALL_PUT_BYTES, b"1"])
    assert medium._slow_medium is not None
    assert backend.stat("p/large") == SMALL_PUT_BYTES + 1
    backend.close()


def test_in_trouble_the_slow_way_is_taken_which_hears_of_pauses(proxy: HttpProxy, bucket: str) -> None:
    backend, medium = through(proxy, bucket)
    backend.put("p/x", [b"1"])
    proxy.spoil("503-retry-after")
    with pytest.raises(RemoteError) as caught:
        backend.stat("p/x")
    assert caught.value.transient and caught.value.retry_after_s == 1.0  # what obstore did not tell is assumed
    assert medium._goes_slow()
    proxy.spoil("503-retry-after")
    with pytest.raises(RemoteError) as caught:
        backend.stat("p/x")
    assert caught.value.retry_after_s == 1.0
    assert backend.stat("p/x") == 1
    medium._slow_until = 0.0
    assert backend.get("p/x", max_bytes=1) == b"1"
    backend.close()


def test_a_refusal_is_asked_once_more_and_explained(proxy: HttpProxy, bucket: str) -> None:
    backend, medium = through(proxy, bucket)
    proxy.spoil("clock-skew", times=None)
    with pytest.raises(RemoteError, match="20 minutes behind"):
        backend.get("p/x", max_bytes=1)
    assert not medium._goes_slow()  # neither way can do it, so there is nothing to learn
    proxy.heal()
    backend.put("p/x", [b"1"])
    proxy.spoil("wrong-region")
    assert backend.get("p/x", max_bytes=1) == b"1"
    assert medium._goes_slow()  # what s3fs can do and obstore cannot is left to it
    backend.close()


def test_a_broken_connection_is_retried_the_slow_way(proxy: HttpProxy, bucket: str) -> None:
    backend, medium = through(proxy, bucket)
    backend.put("p/x", [b"1"])
    proxy.spoil("reset-before", times=1)
    with pytest.raises(RemoteUnreachable, match="connection reset") as caught:
        backend.stat("p/x")
    assert caught.value.transient and "127.0.0.1" not in str(caught.value)
    assert RetryBackend(backend).stat("p/x") == 1 and medium._goes_slow()
    backend.close()


def test_a_child_of_a_process_that_used_obstore_goes_the_slow_way(proxy: HttpProxy, bucket: str) -> None:
    """In a new backend as well as in the inherited one; obstore itself would wait for ever."""
    backend, _ = through(proxy, bucket)
    backend.put("p/x", [b"parent"])
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            threading.Timer(20, os._exit, (2,)).start()
            fresh = open_backend(backend.name, settings=RemoteSettings(), environ=aws_env(proxy.endpoint_url))
            same = all(b.get("p/x", max_bytes=10) == b"parent" for b in (backend, fresh))
            slow = not isinstance(fresh._open(), ObstoreMedium)  # type: ignore[attr-defined]
            code = 0 if same and slow else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert backend.get("p/x", max_bytes=10) == b"parent"
    backend.close()


def test_ctrl_c_ends_the_waiting_for_a_silent_server(tmp_path: Path) -> None:
    code = (
        "import os, sys; from dvk.backend.locate import *;"
        "b = open_backend('s3://acme/x', settings=RemoteSettings(read_timeout_s=50), environ=os.environ);"
        "b._open(); print('ready', flush=True); b.stat('x')"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = os.environ | aws_env(f"http://127.0.0.1:{silent.getsockname()[1]}")
        child = subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        silent.settimeout(10)
        connection, _ = silent.accept()
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=10)
        connection.close()
    assert time.monotonic() - began < 5 and "KeyboardInterrupt" in errors


# ------------------------------------------------------------ what S3 is told


def plan(environ: dict[str, str], *, bucket: str = "acme", prefix: str = "x", **settings: Any) -> Plan | Unfit:
    return plan_s3(bucket, prefix, RemoteSettings(**settings), environ)


def fit(environ: dict[str, str], **options: Any) -> Plan:
    found = plan(environ, **options)
    assert isinstance(found, Plan), found
    return found


def test_amazon_is_spoken_to_by_the_name_of_the_bucket() -> None:
    found = fit(ENVIRON, sse="aws:kms", sse_kms_key_id="k1")
    assert found.config["endpoint"] == "https://acme.s3.eu-west-1.amazonaws.com"
    assert found.config["virtual_hosted_style_request"] is True
    assert found.config["server_side_encryption"] == "aws:kms" and found.config["sse_kms_key_id"] == "k1"
    assert not found.client["allow_http"] and not found.client["allow_invalid_certificates"]
    assert found.keys is not None and found.keys()["secret_access_key"] == "very-secret"


@pytest.mark.parametrize(
    ("addressing", "endpoint"),
    [("auto", "http://h:9000"), ("path", "http://h:9000"), ("virtual", "http://acme.h:9000")],
)
def test_a_compatible_server_is_spoken_to_as_s3fs_does(addressing: str, endpoint: str) -> None:
    found = fit(ENVIRON | {"AWS_ENDPOINT_URL": "http://h:9000/"}, addressing=addressing)
    assert found.config["endpoint"] == found.config["aws_endpoint_url_s3"] == endpoint
    assert found.client["allow_http"]


def test_variables_of_the_process_do_not_change_what_was_planned(
    s3: S3Address, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """obstore looks at the environment by itself; what we say has to win."""
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "else",
        "AWS_SESSION_TOKEN": "token",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AWS_BUCKET": "other",
        "AWS_REGION": "xx",
    }.items():
        monkeypatch.setenv(name, value)
    backend = open_backend(f"s3://{bucket}/vars", settings=RemoteSettings(backend="obstore"), environ=s3.env)
    backend.put("a", [b"1"])
    assert backend.get("a", max_bytes=1) == b"1"
    assert backend._open()._slow_medium is None  # type: ignore[attr-defined]
    backend.close()


@pytest.mark.parametrize(
    ("change", "settings", "why"),
    [
        ({"AWS_REGION": ""}, {}, "no region"),
        ({"AWS_REGION": "cn-north-1"}, {}, "region 'cn-north-1'"),
        ({"AWS_USE_FIPS_ENDPOINT": "true"}, {}, "AWS_USE_FIPS_ENDPOINT"),
        ({}, {"bucket": "with.dots"}, "name of the bucket"),
        ({}, {"prefix": "50%"}, "prefix"),
        ({"AWS_CA_BUNDLE": "/no/such/file"}, {}, "AWS_CA_BUNDLE"),
        # object_store panics at these
        ({"AWS_ENDPOINT_URL": "minio.example:9000"}, {}, "endpoint"),
        ({"AWS_ENDPOINT_URL": "http://"}, {}, "endpoint"),
        ({"AWS_REGION": "eu-west-1\n"}, {}, "region"),
        ({"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE\n"}, {}, "keys"),
        ({"AWS_PROFILE": "nobody"}, {}, "no AWS profile 'nobody'"),
        (dict.fromkeys(KEYS, "") | {"AWS_ENDPOINT_URL": "https://minio.example"}, {}, "no long-lived keys"),
        # a redirect would carry the token to wherever that server says
        ({"AWS_SESSION_TOKEN": "t", "AWS_ENDPOINT_URL": "https://minio.example"}, {}, "temporary credentials"),
    ],
)
def test_what_is_out_of_the_ordinary_is_left_to_s3fs(change: dict[str, str], settings: Any, why: str) -> None:
    found = plan(ENVIRON | change, **settings)
    assert isinstance(found, Unfit) and why in found.reason


@pytest.mark.parametrize("library", ["auto", "fsspec"])
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE\n"),
        ("AWS_SECRET_ACCESS_KEY", "very secret"),
        ("AWS_SESSION_TOKEN", "very-secret\r"),
        ("AWS_REGION", "eu-west-1\n"),
        ("AWS_ENDPOINT_URL", "minio.example:9000"),
        ("AWS_ENDPOINT_URL_S3", "https://me:very-secret@minio.example"),
        ("AWS_CA_BUNDLE", "/no/such/file"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named_at_once(variable: str, value: str, library: str) -> None:
    """Not after two minutes of tries, with the advice to look at the network."""
    environ = ENVIRON | {variable: value, "DVK_BACKEND": library}
    with pytest.raises(UsageError) as caught:
        open_backend("s3://acme/churn", settings=RemoteSettings(), environ=environ)
    assert caught.value.subject == variable
    assert "secret" not in caught.value.message + (caught.value.hint or "")


def test_a_variable_that_is_not_used_may_be_anything() -> None:
    environ = ENVIRON | {"AWS_REGION": "?\n", "AWS_ACCESS_KEY_ID": "\n", "AWS_ENDPOINT_URL": "?"}
    settings = RemoteSettings(region="eu-west-1", profile="team", endpoint_url="https://minio.example")
    open_backend("s3://acme/churn", settings=settings, environ=environ)


@pytest.mark.parametrize("main", [True, False])
def test_a_panic_of_rust_is_an_error_like_others(main: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes it for an end of the process: it would pass every handler, or end a thread in silence."""

    class PanicException(BaseException):
        pass

    def panic(*_: object) -> None:
        raise PanicException("request valid: InvalidUri")

    monkeypatch.setattr("obstore.head", panic)
    medium = ObstoreMedium(fit(ENVIRON), "churn", settings=RemoteSettings())
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="InvalidUri"):
        if main:
            medium.head("j/x")
        pool.submit(medium.head, "j/x").result()


def test_temporary_keys_are_used_with_amazons_own_servers() -> None:
    found = fit(ENVIRON | {"AWS_SESSION_TOKEN": "t"})
    assert found.keys is not None and found.keys()["token"] == "t"


def test_unsigned_requests_need_no_keys() -> None:
    found = fit(NO_FILES | {"AWS_REGION": "eu-west-1"}, anon=True)
    assert found.config["skip_signature"] is True and found.keys is None


def files(tmp_path: Path, *, config: str = "", credentials: str = "") -> dict[str, str]:
    (tmp_path / "config").write_text(config)
    (tmp_path / "credentials").write_text(credentials)
    return {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def test_a_profile_says_region_endpoint_and_keys(tmp_path: Path) -> None:
    environ = files(
        tmp_path,
        config="[profile team]\nregion = eu-north-1\nendpoint_url = https://s3.example\n",
        credentials="[team]\naws_access_key_id = A\naws_secret_access_key = B\n",
    )
    found = read_aws(RemoteSettings(profile="team"), environ | KEYS | {"AWS_REGION": ""})
    assert (found.region, found.endpoint) == ("eu-north-1", "https://s3.example")
    assert found.keys is not None and (found.keys.access, found.keys.secret) == ("A", "B")
    assert "B" not in repr(found.keys)


@pytest.mark.parametrize(
    "line", ["s3 =\n  addressing_style = path", "use_fips_endpoint = true", "services = local", "something_new = 1"]
)
def test_a_profile_that_sets_what_we_do_not_know_is_left_to_botocore(tmp_path: Path, line: str) -> None:
    environ = files(tmp_path, config=f"[default]\nregion = eu-west-1\n{line}\n") | KEYS
    found = plan(environ)
    assert isinstance(found, Unfit) and f"sets {line.split()[0]}" in found.reason


def test_keys_of_a_program_come_through_botocore(tmp_path: Path) -> None:
    """As those of roles, SSO and machines do."""
    script = tmp_path / "keys.sh"
    script.write_text('echo \'{"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "B", "SessionToken": "C"}\'\n')
    environ = files(tmp_path, config=f"[profile sso]\nregion = eu-west-1\ncredential_process = sh {script}\n")
    found = fit(environ, profile="sso")
    assert found.keys is not None
    said = found.keys()
    assert (said["access_key_id"], said["secret_access_key"], said["token"]) == ("A", "B", "C")
    assert said["expires_at"] is not None  # so that obstore asks again
    assert isinstance(plan(environ | {"AWS_ENDPOINT_URL": "https://minio.example"}, profile="sso"), Unfit)


def test_a_profile_that_does_not_exist_is_left_to_s3fs_which_says_so(tmp_path: Path) -> None:
    assert isinstance(plan(files(tmp_path) | {"AWS_REGION": "eu-west-1"}, profile="none"), Unfit)


def test_files_that_cannot_be_read_are_left_to_botocore(tmp_path: Path) -> None:
    assert isinstance(plan(files(tmp_path, config="no section\n") | KEYS), Unfit)


def test_a_private_authority_is_handed_on(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"-----BEGIN CERTIFICATE-----")
    found = fit(ENVIRON | {"AWS_CA_BUNDLE": str(tmp_path / "ca.pem")})
    assert found.client["root_certificate"] == b"-----BEGIN CERTIFICATE-----"


def test_what_obstore_cannot_be_set_up_with_is_left_to_s3fs_which_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"no certificate")
    environ = ENVIRON | {"AWS_CA_BUNDLE": str(tmp_path / "ca.pem"), "AWS_ENDPOINT_URL": "https://127.0.0.1:1"}
    with pytest.raises(RemoteError, match="secure connection"):
        open_backend("s3://acme/churn", settings=RemoteSettings(), environ=environ).stat("j/x")


# ------------------------------------------------------------ the user's word


@pytest.mark.parametrize(
    ("environ", "settings", "library"),
    [
        ({}, {}, "obstore"),
        ({"DVK_BACKEND": "fsspec"}, {}, "s3fs"),
        ({"DVK_BACKEND": "obstore"}, {"backend": "fsspec"}, "obstore"),
        ({}, {"backend": "fsspec"}, "s3fs"),
        ({"AWS_REGION": ""}, {}, "s3fs"),
    ],
)
def test_the_library_can_be_chosen(environ: dict[str, str], settings: Any, library: str) -> None:
    url = parse_remote_url("s3://acme/x")
    found, why = library_of(url, settings=RemoteSettings(**settings), environ=ENVIRON | environ)
    assert found == library and bool(why) == (library != "obstore")
    backend = open_backend(url, settings=RemoteSettings(**settings), environ=ENVIRON | environ)
    assert isinstance(backend._open(), ObstoreMedium) == (library == "obstore")  # type: ignore[attr-defined]


def test_obstore_or_nothing_is_an_error_that_says_why() -> None:
    backend = open_backend(
        "s3://acme/x", settings=RemoteSettings(backend="obstore"), environ=ENVIRON | {"AWS_REGION": ""}
    )
    with pytest.raises(UsageError, match="no region is set"):
        backend.stat("a")


def test_a_library_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="one of auto, obstore, fsspec"):
        open_backend("s3://acme/x", settings=RemoteSettings(), environ={"DVK_BACKEND": "curl"})
    with pytest.raises(UsageError, match="backend is one of"):
        RemoteSettings(backend="curl")


# ------------------------------------------------------------ Google and Azure, as far as one can without them


def test_google_is_told_where_the_credentials_are() -> None:
    environ = {"GOOGLE_APPLICATION_CREDENTIALS": "/home/me/key.json"}
    found = plan_gcs("bucket", "x", RemoteSettings(), environ)
    assert isinstance(found, Plan) and found.config["application_credentials"] == "/home/me/key.json"
    anonymous = plan_gcs("bucket", "x", RemoteSettings(anon=True), environ)
    assert isinstance(anonymous, Plan) and dict(anonymous.config) == {"skip_signature": True}
    assert isinstance(plan_gcs("bucket", "a b", RemoteSettings(), {}), Unfit)


def test_azure_is_told_account_and_credentials() -> None:
    environ = {"AZURE_STORAGE_ACCOUNT": "acme", "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=x"}
    found = plan_azure("cont", "x", RemoteSettings(), environ)
    assert isinstance(found, Plan)
    assert dict(found.config) == {"account_name": "acme", "skip_signature": False, "sas_key": "sv=1&sig=x"}
    with pytest.raises(UsageError, match="which storage account") as caught:
        plan_azure("cont", "x", RemoteSettings(), {})
    assert "AZURE_STORAGE_ACCOUNT_NAME" in caught.value.hint


@pytest.mark.parametrize("url", ["gs://bucket/x", "az://cont/x"])
def test_google_and_azure_open_without_contacting_anything(url: str) -> None:
    environ = {"AZURE_STORAGE_ACCOUNT_NAME": "acme", "AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0"}
    backend = open_backend(url, settings=RemoteSettings(anon=url.startswith("gs")), environ=environ)
    medium = backend._open()  # type: ignore[attr-defined]
    assert isinstance(medium, ObstoreMedium) and medium._make_slow is None
    assert backend.capabilities.create_only and backend.name == url
    backend.close()


@pytest.mark.parametrize(
    ("name", "status", "body", "kind", "says"),
    [
        ("gs://b", 404, "<Error><Code>NoSuchBucket</Code></Error>", NotFound, "no bucket 'b'"),
        ("az://c", 404, "<Error><Code>ContainerNotFound</Code></Error>", NotFound, "no bucket 'c'"),
        ("gs://b", 403, "<Error><Code>AccessDenied</Code></Error>", RemoteDenied, "gcloud auth"),
        ("az://c", 403, "<Error><Code>AuthenticationFailed</Code></Error>", RemoteDenied, "az login"),
        ("az://c", 503, "<Error><Code>ServerBusy</Code></Error>", RemoteError, "ServerBusy"),
        ("gs://b", 401, "not xml at all", RemoteDenied, "401"),
    ],
)
def test_a_refusal_in_words_is_taken_apart(name: str, status: int, body: str, kind: type[DvkError], says: str) -> None:
    found = translate_remote(Refused(status, body), name=name, key="k")
    assert isinstance(found, kind) and not isinstance(found, KeyMissing)
    assert says in f"{found} {found.hint}"
    assert getattr(found, "transient", False) == (status == 503)
