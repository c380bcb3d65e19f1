"""From the URL of a remote to its backend. The URL may come from a stranger's repository.

>>> parse_remote_url("s3://acme/churn/")
RemoteUrl(scheme='s3', authority='acme', path='churn')
>>> str(parse_remote_url("/mnt/team"))
'file:///mnt/team'

So the schemes are an allow-list, nothing of the URL reaches `fsspec.open` (whose chains can run templates and
unpickle), no URL carries credentials or options, and every filesystem is built here from checked parts. The
libraries behind the schemes are imported on first use: s3fs alone costs 350 ms.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from dvk.backend.contract import Backend
from dvk.backend.local import LocalBackend
from dvk.backend.settings import RemoteSettings
from dvk.backend.text import printable, redact
from dvk.errors import UsageError

if TYPE_CHECKING:
    from dvk.backend.obstore_options import Plan, Unfit
    from dvk.backend.origin import Origin
    from dvk.backend.remote_fs import Medium

__all__ = ["RemoteSettings", "RemoteUrl", "library_of", "open_backend", "parse_remote_url", "wanted_library"]

LIBRARY_VARIABLE = "DVK_BACKEND"

ObjectMark = tuple[int, str, str, str]

_ALIASES = {"gcs": "gs", "abfs": "az", "abfss": "az", "sftp": "ssh"}
_SCHEMES = ("file", "s3", "gs", "az", "ssh", "hdfs", "http", "https")
_BUCKETS = ("s3", "gs", "az")
#: scheme -> module, class, the package to install
_FSSPEC_LIBRARIES = {
    "s3": ("s3fs", "S3FileSystem", "s3fs"),
    "gs": ("gcsfs", "GCSFileSystem", "gcsfs"),
    "az": ("adlfs", "AzureBlobFileSystem", "adlfs"),
    "ssh": ("sshfs", "SSHFileSystem", "sshfs"),
    "hdfs": ("fsspec.implementations.arrow", "HadoopFileSystem", "pyarrow"),
    "http": ("fsspec.implementations.http", "HTTPFileSystem", "aiohttp"),
    "https": ("fsspec.implementations.http", "HTTPFileSystem", "aiohttp"),
}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_HOST = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)")


class RemoteUrl(Struct, frozen=True):
    """A checked URL. `str()` gives its one canonical form, which is also what trust is remembered for."""

    scheme: str  #: one of file, s3, gs, az, ssh, hdfs, http, https
    authority: str  #: the bucket, container or host; "" for file
    path: str  #: absolute for file, else without slashes at either end

    def __str__(self) -> str:
        if self.scheme == "file":
            return f"file://{self.path}"
        return f"{self.scheme}://{self.authority}" + (f"/{self.path}" if self.path else "")

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine (or on a mount)."""
        return self.scheme == "file"

    @property
    def read_only(self) -> bool:
        """Whether this kind of remote cannot be written."""
        return self.scheme in ("http", "https")


def parse_remote_url(url: str) -> RemoteUrl:
    """Check the URL of a remote: an absolute path, or SCHEME://PLACE/PREFIX.

    Nothing in it is decoded: a `%20` stays three characters.

    Raises:
        UsageError: anything else, saying what is wrong.
    """
    if not url:
        raise UsageError("an empty URL names no remote")
    if not url.isprintable():
        raise _refuse(url, "it holds a control character")
    if url.startswith("-"):
        raise _refuse(url, "it starts with a dash, like an option")
    if url.startswith("/"):
        return RemoteUrl("file", "", _local_path(url, url))
    # A local path may hold colons and never reaches fsspec; an IPv6 address has them by nature.
    if "::" in url and not url.lower().startswith(("file://", "http://[", "https://[", "ssh://[", "sftp://[")):
        raise _refuse(url, "chains of filesystems (`::`) are not allowed")
    match = _URL.fullmatch(url)
    if match is None:
        if re.match(r"(?i)(s3|gs|gcs|az|abfss?|ssh|sftp|hdfs|https?|file):", url):
            raise _refuse(url, "two slashes are missing after the colon", hint="like s3://bucket/prefix")
        raise _refuse(
            url,
            "it is neither SCHEME://... nor an absolute path",
            hint="like s3://bucket/prefix or /mnt/team",
        )
    scheme = match[1].lower()
    scheme = _ALIASES.get(scheme, scheme)
    rest = match[2]
    if scheme not in _SCHEMES:
        raise _refuse(url, f"unknown scheme {scheme!r}", hint=f"one of {', '.join((*_SCHEMES, *_ALIASES))}")
    if scheme == "file":
        authority, slash, path = rest.partition("/")
        if authority not in ("", "localhost") or not slash:
            raise _refuse(url, "a file URL names no host", hint="like file:///mnt/team")
        return RemoteUrl("file", "", _local_path(url, f"/{path}"))
    authority, _, path = rest.partition("/")
    if "@" in authority:
        raise _refuse(
            url,
            "a user or password does not belong into the URL of a remote",
            hint="credentials come from the cloud's own tools; an ssh user from ~/.ssh/config",
        )
    for sign in "?#":
        if sign in rest:
            raise _refuse(url, f"options after {sign!r} are not allowed", hint="use `dvk config` for the remote")
    if not authority:
        raise _refuse(url, "the bucket or host is missing", hint=f"like {scheme}://PLACE/PREFIX")
    if not (_BUCKET if scheme in ("s3", "gs", "az") else _HOST).fullmatch(authority):
        raise _refuse(url, f"{redact(authority)!r} cannot be the name of a bucket or host")
    path = path.rstrip("/")
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise _refuse(url, "the prefix has an empty, `.` or `..` part")
    if len(path.encode("utf-8", "surrogateescape")) > 400:
        raise _refuse(url, "the prefix is longer than 400 bytes")
    return RemoteUrl(scheme, authority, path)


def open_backend(url: RemoteUrl | str, *, settings: RemoteSettings, environ: Mapping[str, str]) -> Backend:
    """The backend behind a URL. Contacts nothing yet: the first operation does.

    `environ` holds the AWS tools' variables; credentials come from there and from the files of those
    tools only. The backend does not retry; wrap it in `RetryBackend`.

    Raises:
        UsageError: a malformed URL, or the library for its scheme is not installed (named in the hint).
    """
    if isinstance(url, str):
        url = parse_remote_url(url)
    if url.scheme == "file":
        return LocalBackend(url.path)
    if url.scheme == "s3":
        from dvk.backend.aws_files import check_environ

        check_environ(settings, environ)
    wanted = wanted_library(settings, environ)
    connect = _connector(url, settings, dict(environ), wanted)
    from dvk.backend.remote_fs import FsspecBackend

    return FsspecBackend(
        connect,
        name=printable(str(url)),
        create_only=url.scheme in _BUCKETS,
        read_only=url.read_only,
        profile=settings.profile or environ.get("AWS_PROFILE", "") if url.scheme == "s3" else "",
    )


class MarkedMedium(Protocol):
    """A medium that also tells what makes an object another one: size, etag, version, time (empty where unknown)."""

    def mark(self, key: str) -> ObjectMark | None:
        """Of one object, None when there is none."""

    def marks(self, prefix: str) -> Iterator[tuple[str, ObjectMark]]:
        """Of all objects that start with `prefix`; maybe of others too."""

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int | None]:
        """As of `remote_fs.Medium`."""

    def close(self) -> None:
        """Let go of connections."""


def open_medium(url: RemoteUrl, *, settings: RemoteSettings, environ: Mapping[str, str]) -> MarkedMedium:
    """The medium of the whole bucket or host that a URL leads to, by fsspec; keys are paths in it. Contacts nothing.

    Raises:
        UsageError: the library for its scheme is not installed.
    """
    if url.scheme == "s3":
        from dvk.backend.aws_files import check_environ

        check_environ(settings, environ)
    _need(url)
    made: MarkedMedium = _slow_connector(RemoteUrl(url.scheme, url.authority, ""), settings, dict(environ))()  # type: ignore[assignment]
    return made


def open_origin(url: RemoteUrl, *, settings: RemoteSettings, environ: Mapping[str, str]) -> Origin:
    """The place behind a URL that was checked; nothing is contacted.

    Raises:
        UsageError: the library for its scheme is not installed.
    """
    if url.scheme in ("http", "https"):
        _need(url)
        from dvk.backend.http_origin import HttpOrigin

        return HttpOrigin(url, settings)
    from dvk.backend.origin import LocalOrigin, MediumOrigin

    if url.is_local:
        return LocalOrigin(url)
    return MediumOrigin(url, open_medium(url, settings=settings, environ=environ))


def wanted_library(settings: RemoteSettings, environ: Mapping[str, str]) -> str:
    """What the user wants for buckets: auto, obstore or fsspec. `DVK_BACKEND` is stronger than the settings.

    Raises:
        UsageError: the variable says something else.
    """
    wanted = environ.get(LIBRARY_VARIABLE) or settings.backend
    if wanted not in ("auto", "obstore", "fsspec"):
        raise UsageError("is one of auto, obstore, fsspec", subject=LIBRARY_VARIABLE)
    return wanted


def library_of(url: RemoteUrl, *, settings: RemoteSettings, environ: Mapping[str, str]) -> tuple[str, str]:
    """The library that would talk to a bucket, and why not the fast one (or nothing). Contacts nothing.

    Raises:
        UsageError: as `open_backend`.
    """
    library = _FSSPEC_LIBRARIES[url.scheme][2]
    if url.scheme in _BUCKETS and wanted_library(settings, environ) != "fsspec" and _installed("obstore"):
        plan = _plan(url, settings, environ, offline=True)
        from dvk.backend.obstore_options import Unfit

        if not isinstance(plan, Unfit):
            return "obstore", ""
        why = plan.reason
    elif url.scheme not in _BUCKETS:
        why = ""
    elif wanted_library(settings, environ) == "fsspec":
        why = "as the settings say"
    else:
        why = "`pip install 'dvk[fast]'` makes small requests faster"
    _need(url)
    return library, why


def _connector(
    url: RemoteUrl, settings: RemoteSettings, environ: Mapping[str, str], wanted: str
) -> Callable[[], Medium]:
    """A function that makes the medium, after checking that its library is there."""
    plain = _slow_connector(url, settings, environ)
    if url.scheme not in _BUCKETS or wanted == "fsspec" or (wanted == "auto" and not _installed("obstore")):
        _need(url)
        return plain
    if not _installed("obstore"):
        raise UsageError(
            "obstore is not installed", subject=LIBRARY_VARIABLE, hint="pip install 'dvk[fast]', or say auto"
        )
    has_plain = _installed(_FSSPEC_LIBRARIES[url.scheme][0])

    def connect() -> Medium:
        from dvk.backend.obstore_options import Unfit
        from dvk.backend.remote_fs import obstore_survives

        plan = _plan(url, settings, environ)
        if isinstance(plan, Unfit) and wanted == "obstore":
            raise UsageError(f"obstore cannot be used: {plan.reason}", subject=printable(str(url)))
        if isinstance(plan, Unfit) or not obstore_survives():
            _need(url)
            return plain()
        from dvk.backend.obstore_medium import ObstoreMedium

        # s3fs comes with dvk and explains what obstore does not; the libraries for other clouds do not.
        slow = plain if url.scheme == "s3" and has_plain else None
        try:
            return ObstoreMedium(plan, url.path, settings=settings, slow=slow)
        except Exception:
            if slow is None:
                raise
            return slow()  # which says what is wrong, of a file of certificates for example

    return connect


def _plan(
    url: RemoteUrl, settings: RemoteSettings, environ: Mapping[str, str], *, offline: bool = False
) -> Plan | Unfit:
    from dvk.backend.obstore_options import plan_azure, plan_gcs, plan_s3

    if url.scheme == "s3":
        return plan_s3(url.authority, url.path, settings, environ, offline=offline)
    make = {"gs": plan_gcs, "az": plan_azure}[url.scheme]
    return make(url.authority, url.path, settings, environ)


def _slow_connector(url: RemoteUrl, settings: RemoteSettings, environ: Mapping[str, str]) -> Callable[[], Medium]:
    if url.scheme == "s3":

        def connect_s3() -> Medium:
            from dvk.backend.s3 import S3Medium

            return S3Medium(url.authority, url.path, settings=settings, environ=environ)

        return connect_s3
    base = f"{url.authority}/{url.path}".rstrip("/")
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    atomic = True
    module, name, _ = _FSSPEC_LIBRARIES[url.scheme]
    if url.scheme == "gs":
        options["token"] = "anon" if settings.anon else None
    elif url.scheme == "az":
        options["account_name"] = environ.get("AZURE_STORAGE_ACCOUNT_NAME") or environ.get("AZURE_STORAGE_ACCOUNT")
        options["anon"] = settings.anon
    elif url.scheme in ("ssh", "hdfs"):
        host, _, port = url.authority.rpartition(":") if url.authority[-1] != "]" else (url.authority, "", "")
        options |= {"host": (host or url.authority).strip("[]")} | ({"port": int(port)} if host and port else {})
        base, atomic = f"/{url.path}", False
    else:
        base = str(url)

    def connect_any() -> Medium:
        from dvk.backend.remote_fs import FsspecMedium

        if url.read_only:
            from dvk.backend.http_mirror import no_redirects_elsewhere

            options["get_client"] = no_redirects_elsewhere
        make = getattr(importlib.import_module(module), name)
        return FsspecMedium(make(**options), base, atomic_put=atomic)

    return connect_any


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(name.partition(".")[0]) is not None for name in modules)


def _need(url: RemoteUrl) -> None:
    """Raise unless the library is installed, before anything slow is imported."""
    module, _, package = _FSSPEC_LIBRARIES[url.scheme]
    if not _installed(module, package):
        other = ", or pip install 'dvk[fast]'" if url.scheme in _BUCKETS else ""
        raise UsageError(
            f"{url.scheme}:// remotes need the package {package}",
            subject=printable(str(url)),
            hint=f"pip install {package}{other}",
        )


def _local_path(url: str, path: str) -> str:
    parts = path.split("/")
    if ".." in parts:
        raise _refuse(url, "it has a `..` part")
    clean = "/" + "/".join(part for part in parts if part not in ("", "."))
    if clean == "/":
        raise _refuse(url, "the top of the filesystem cannot be a remote")
    return clean


def _refuse(url: str, why: str, *, hint: str = "") -> UsageError:
    return UsageError(f"not the URL of a remote: {why}", subject=redact(url), hint=hint)
