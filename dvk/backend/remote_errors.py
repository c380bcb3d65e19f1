"""What the libraries below a remote raise, as errors that say what to do.

botocore says `ClientError`, s3fs turns "412 Precondition Failed" into "[Errno 22] Invalid argument", aiohttp
speaks of payloads. The truth is somewhere along `__cause__`: this module looks for it, once, for all remotes.

>>> e = OSError(22, "Invalid argument")
>>> e.__cause__ = _Answer("ExpiredToken")
>>> translate_remote(e, name="s3://acme/churn").kind
'remote-denied'

Libraries are known by the names of their classes, so that this module imports none of them (350 ms).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from dvk.backend.contract import KeyExists, KeyMissing, WrongAnswer
from dvk.backend.text import redact
from dvk.errors import (
    DvkError,
    NotFound,
    RemoteDenied,
    RemoteError,
    RemoteUnreachable,
    StorageFull,
)

MISSING = {"BlobNotFound", "NoSuchKey", "404", "NotFound", "NoSuchVersion"}
_EXISTS = {"PreconditionFailed", "412", "FileAlreadyExists"}
CONFLICT = {"ConditionalRequestConflict", "409", "Conflict"}
BAD_RANGE = {"InvalidRange", "416", "RequestedRangeNotSatisfiable"}
_DENIED = {"AccessDenied", "403", "Forbidden", "401", "Unauthorized", "AllAccessDisabled", "AccountProblem"} | {
    "AuthenticationFailed",
    "AuthorizationFailure",
    "AuthorizationPermissionMismatch",
    "InvalidAuthenticationInfo",
    "NoAuthenticationInformation",
}
_EXPIRED = {
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
    "InvalidToken",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
}
_REGION = {
    "PermanentRedirect",
    "301",
    "307",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "TemporaryRedirect",
}
_TRANSIENT = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "RequestTimeoutException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "OperationAborted",
    "BadDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "ConditionalRequestConflict",
    "429",
    "408",
    "500",
    "502",
    "503",
    "504",
}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}

_SIGN_IN_CLASSES = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "TokenRetrievalError",
    "NoAuthTokenError",
    "SSOError",
    "LoginError",
    "RefreshError",
    "DefaultCredentialsError",
}
_TLS_CLASSES = {"SSLError", "ClientSSLError", "SSLCertVerificationError", "CertificateError"}
_BROKEN_CLASSES = {
    "ConnectionError",  # of the system and of botocore
    "HTTPClientError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ServerDisconnectedError",
    "ResponseStreamingError",
    "IncompleteReadError",
    "IncompleteRead",
    "FSTimeoutError",
    "TimeoutError",
    "gaierror",
    "ResponseParserError",  # an answer cut in its XML
    "DisconnectError",
}


def answer_of(e: BaseException) -> Mapping[str, Any] | None:
    """The answer of an S3 server behind `e`: botocore's `response`, with "Error" and "ResponseMetadata"."""
    for cause in _chain(e):
        response = getattr(cause, "response", None)
        if isinstance(response, Mapping) and isinstance(response.get("Error"), Mapping):
            return response
    return None


def code_of(e: BaseException) -> str:
    """The server's own word for the error ("NoSuchKey"), or its HTTP status, or ""."""
    response = answer_of(e)
    if response is None:
        for cause in _chain(e):
            # aiohttp, azure, gcsfs; not any `code`, since aiohttp's parser calls a cut body a 400
            status = getattr(cause, "status", None) or getattr(cause, "status_code", None)
            if status is None and type(cause).__name__ == "HttpError":
                status = getattr(cause, "code", None)
            if isinstance(status, int) and 300 <= status < 600:
                return str(status)
        return ""
    return str(response["Error"].get("Code") or response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))


def translate_remote(
    e: Exception, *, name: str, key: str = "", create_only: bool = False, profile: str = ""
) -> DvkError:
    """The dvk error for what a remote's library raised. `name` is the remote, `profile` goes into hints.

    Raises nothing; a `DvkError` is handed back as it is.
    """
    if isinstance(e, DvkError) and not isinstance(e, Interjected):
        e.subject = e.subject or name
        return e
    for cause in _chain(e):
        if isinstance(cause, Interjected):
            return RemoteError(cause.message, subject=cause.subject or name, hint=cause.hint)
    subject = f"{name}/{key}" if key else name
    code = code_of(e)
    if code:
        return _from_answer(e, code, name, subject, create_only, profile)
    names = {cls.__name__ for cause in _chain(e) for cls in type(cause).__mro__}
    program = why_no_process(e)
    if program:
        return RemoteDenied(f"no usable credentials: {program}", subject=name, hint=_sign_in(name, profile))
    detail = redact(str(e)) or type(e).__name__
    if "ProfileNotFound" in names:
        return RemoteDenied(detail, subject=name, hint="`aws configure list-profiles` shows the profiles there are")
    if names & _SIGN_IN_CLASSES:
        return RemoteDenied(f"no usable credentials: {detail}", subject=name, hint=_sign_in(name, profile))
    if names & _TLS_CLASSES:
        return RemoteError(
            f"the secure connection could not be trusted: {detail}",
            subject=name,
            hint="behind a company proxy or private authority, point "
            f"{'AWS_CA_BUNDLE' if name.startswith('s3:') else 'SSL_CERT_FILE'} to its certificate",
        )
    if "FlexibleChecksumError" in names:
        return WrongAnswer(
            "the answer does not match the checksum that the server sent along",
            subject=subject,
            hint="some servers send a wrong one for ranges: set the remote's checksum to when_required",
            transient=True,
        )
    if names & _BROKEN_CLASSES:
        return RemoteUnreachable(f"no answer, or the connection broke: {detail}", subject=subject, hint=_OFFLINE)
    if isinstance(e, FileNotFoundError):
        return KeyMissing("no such object", subject=subject)
    if isinstance(e, FileExistsError):
        return KeyExists("already there", subject=subject)
    if isinstance(e, PermissionError):
        return RemoteDenied(f"permission denied: {detail}", subject=subject, hint=_sign_in(name, profile))
    return RemoteError(f"{type(e).__name__}: {detail}", subject=subject)


def why_no_process(e: BaseException) -> str:
    """What is wrong with the `credential_process` that `e` comes out of; empty when it comes from elsewhere.

    What such a program says may be a secret, so nothing of it is quoted. It is known by the frame that ran it: what
    comes out is an error of JSON or of the system as often as one of botocore.
    """
    for cause in _chain(e):
        frame = cause.__traceback__
        while frame is not None and frame.tb_frame.f_code.co_name != "_retrieve_credentials_using":
            frame = frame.tb_next
        if frame is None:
            continue
        what = "the credential_process of the AWS profile"
        if isinstance(cause, OSError):
            return f"{what} cannot be run ({cause.strerror or type(cause).__name__})"
        if type(cause).__name__ != "CredentialRetrievalError":
            return f"{what} answered something that is no JSON of credentials"
        said = re.search(r"Unsupported version|Missing required key in response: '[A-Za-z]{1,40}'$", str(cause))
        return f"{what} failed ({said[0] if said else 'run it by hand to see what it says'})"
    return ""


_OFFLINE = "check the network, then run the same command again; what arrived is kept"


def _from_answer(e: Exception, code: str, name: str, subject: str, create_only: bool, profile: str) -> DvkError:
    response = answer_of(e) or {}
    meta = response.get("ResponseMetadata", {})
    headers = {str(k).lower(): str(v) for k, v in meta.get("HTTPHeaders", {}).items()}
    error = response.get("Error", {})
    said = redact(str(error.get("Message") or ""))
    says = f"the server says {redact(code)}" + (f": {said}" if said and said != code else "")
    status = meta.get("HTTPStatusCode")
    if code in ("NoSuchBucket", "ContainerNotFound"):
        bucket = redact(str(error.get("BucketName") or name.partition("://")[2].partition("/")[0]))
        return NotFound(f"no bucket {bucket!r}", subject=name, hint="check the URL, the region and the endpoint")
    if create_only and (code in _EXISTS):
        return KeyExists("already there", subject=subject)
    if code in MISSING:
        return KeyMissing("no such object", subject=subject)
    if code in _EXPIRED:
        return RemoteDenied(f"the sign-in has expired ({code})", subject=name, hint=_sign_in(name, profile))
    if code == "InvalidAccessKeyId":
        return RemoteDenied(
            "the server does not know this access key",
            subject=name,
            hint=_sign_in(name, profile, "another server's?"),
        )
    if code == "SignatureDoesNotMatch":
        return RemoteDenied(
            "the secret key does not fit the access key",
            subject=name,
            hint=_sign_in(name, profile, "a proxy that rewrites requests does this too"),
        )
    if code in ("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"):
        return RemoteError(_skew(headers), subject=name, hint="set the clock (for example `timedatectl set-ntp true`)")
    region = redact(headers.get("x-amz-bucket-region") or str(error.get("Region") or ""))
    if code in _REGION or status in (301, 302, 307, 308):
        right = f": it is in {region}" if region else ""
        return RemoteError(
            f"the bucket is not in the region that was asked{right}",
            subject=name,
            hint=f"set the remote's region to {region}" if region else "set the remote's region",
        )
    if code == "407":
        return RemoteDenied(
            "a proxy on the way wants a sign-in",
            subject=name,
            hint="HTTPS_PROXY or HTTP_PROXY says which; NO_PROXY names the hosts that need none",
        )
    if code in _FULL:
        return StorageFull(says, subject=subject, hint="make room on the remote, then run the same command again")
    if code in _DENIED:
        return RemoteDenied(
            says,
            subject=subject,
            hint=f"{_sign_in(name, profile)}; or ask for the right to list the bucket: without it, S3 says "
            "this also about objects that do not exist",
        )
    transient = code in _TRANSIENT or (isinstance(status, int) and (status >= 500 or status == 429))
    failed = RemoteError(says, subject=subject, transient=transient, hint=_LATER if transient else "")
    failed.retry_after_s = _retry_after(headers)
    return failed


class Interjected(RemoteError):
    """Raised by us in the middle of a library, which may wrap it; never leaves a backend."""


def redirected(host: str) -> Interjected:
    """For a server that sends us on to `host`."""
    return Interjected(
        f"the server redirects to {redact(host)!r}, which dvk does not follow",
        hint="if that is the right server, make it the remote's endpoint_url",
    )


_LATER = "the server is busy or in trouble: run the same command again later"


def _sign_in(name: str, profile: str, also: str = "") -> str:
    """How to get new credentials for the kind of remote."""
    scheme = name.partition("://")[0]
    option = f" --profile {profile}" if profile else ""
    command = {
        "s3": f"`aws sso login{option}` or `aws configure{option}`",
        "gs": "`gcloud auth application-default login`",
        "gcs": "`gcloud auth application-default login`",
        "az": "`az login`",
        "abfs": "`az login`",
        "abfss": "`az login`",
        "ssh": "`ssh-add`, and try `ssh` to that host",
        "sftp": "`ssh-add`, and try `ssh` to that host",
    }.get(scheme, "check the credentials")
    return f"sign in again: {command}" + (f" ({also})" if also else "")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server wants to be left alone, from a number or a date."""
    said = headers.get("retry-after", "").strip()
    if said.isdigit():
        return float(said[:9])
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None


def _skew(headers: Mapping[str, str]) -> str:
    """How far this machine's clock is off, by the date that the server put on its refusal."""
    try:
        server = parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError):
        return "this machine's clock differs too much from the server's"
    minutes = (time.time() - server) / 60
    where = "ahead of" if minutes > 0 else "behind"
    return f"this machine's clock is {abs(minutes):.0f} minutes {where} the server's"


def _chain(e: BaseException) -> Iterator[BaseException]:
    """`e` and what caused it, outermost first.

    Not what the caller was handling when it asked the remote: Python makes that a context, too, and an object that is
    looked for elsewhere because it is missing would turn every failure of that search into a missing object.
    """
    seen: list[BaseException] = []
    at: BaseException | None = e
    while at is not None and at not in seen and len(seen) < 12:
        seen.append(at)
        yield at
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
        if isinstance(at, DvkError) and not isinstance(at, Interjected):
            return


class _Answer(Exception):
    """botocore's `ClientError` in shape; for the example above."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}
