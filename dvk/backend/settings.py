"""How to reach a remote, beyond its URL. Never holds a secret: those stay with the AWS tools."""

from __future__ import annotations

from msgspec import Struct

from dvk.errors import UsageError

_CHOICES = {
    "addressing": ("auto", "path", "virtual"),
    "checksum": ("auto", "when_required"),
    "backend": ("auto", "obstore", "fsspec"),
}


class RemoteSettings(Struct, frozen=True, kw_only=True):
    """Settings of one remote; the defaults suit AWS and most others.

    Raises:
        UsageError: a value that is not one of the choices, or no positive number.
    """

    endpoint_url: str | None = None  #: of an S3-compatible server; default: what the AWS tools are set to
    region: str | None = None
    profile: str | None = None  #: of the AWS files; outranks keys in the environment
    addressing: str = "auto"  #: auto, path (host/bucket) or virtual (bucket.host)
    sse: str | None = None  #: server-side encryption: "AES256" or "aws:kms"
    sse_kms_key_id: str | None = None
    checksum: str = "auto"  #: when_required for servers that cannot cope with the newer checksums
    backend: str = "auto"  #: the library for s3, gs and az; auto: obstore where it is installed and fits
    anon: bool = False  #: send unsigned requests
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    deadline_s: float = 120.0  #: how long an operation that fails for the moment is repeated
    max_concurrency: int = 32  #: connections kept open

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise UsageError(f"{field} is one of {', '.join(choices)}", subject=str(getattr(self, field))[:80])
        for field in ("connect_timeout_s", "read_timeout_s", "deadline_s", "max_concurrency"):
            if not getattr(self, field) > 0:
                raise UsageError(f"{field} must be more than 0", subject=str(getattr(self, field))[:80])
        if self.endpoint_url is not None:
            scheme, _, rest = self.endpoint_url.partition("://")
            if scheme not in ("http", "https") or not rest or "@" in rest or not self.endpoint_url.isprintable():
                raise UsageError("an endpoint is http://HOST[:PORT] or https://HOST[:PORT], without a user")
