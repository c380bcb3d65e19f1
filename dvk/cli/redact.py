"""The one place where secrets are taken out of text, on its way to a terminal, a log or a JSON document.

A server's error may quote the signed URL of the request, a library's traceback the key it was called with,
and a continuous-integration log is public. Guessing each source is hopeless, so all text passes here once, at
the edge.

>>> Redactor({}).clean("PUT https://me:pw@host/b?X-Amz-Signature=3fa&x=1 failed")
'PUT https://***@host/b?X-Amz-Signature=***&x=1 failed'

What is replaced: the user part of a URL, the values of signing parameters and authorization headers, anything
with the shape of an AWS access key id, and the *values* of environment variables that hold secrets, as they
are and URL-encoded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

MASK = "***"

#: Names of environment variables whose values are secrets. `..._FILE` and `..._PATH` point to one and are
#: not.
_SECRET_NAME = re.compile(
    r"AWS_ACCESS_KEY_ID|(?:.*_)?(?:SECRET|SECRET_ACCESS_KEY|TOKEN|PASSWORD|PASSWD|API_?KEY|ACCOUNT_KEY|SAS_TOKEN|"
    r"CONNECTION_STRING|PRIVATE_KEY|SECRET_KEY|SSE_CUSTOMER_KEY)",
    re.IGNORECASE,
)

#: A shorter value is more likely a word ("none", "example") than a secret, and would blank out ordinary text.
_SHORTEST = 8

_USERINFO = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#@'\"<>]+(?::[^\s/?#@'\"<>]*)?@")
_PARAMETER = re.compile(
    r"(?P<name>\b(?:X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig|access_token|"
    r"refresh_token|client_secret|aws_secret_access_key|aws_session_token|secret_access_key|password)"
    # A colon counts after a quoted name only (JSON, a Python dict): "Signature: does not match" is prose.
    r"(?:=|%3D|\s=\s|['\"]\s*:\s*)['\"]?)(?P<value>[^\s&'\"<>,;)}\]]+)",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"(?P<name>\b(?:Proxy-)?Authorization['\"]?\s*[:=]\s*['\"]?)"
    r"(?:AWS4-HMAC-SHA256|AWS|Basic|Bearer|Digest|Negotiate|SharedKey|Token)\s[^'\"\r\n]+|"
    r"(?P<scheme>\bBearer\s+)[A-Za-z0-9._~+/=-]{8,}",
    re.IGNORECASE,
)
_ACCESS_KEY_ID = re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b")

#: Without one of these no pattern can match: a million lines of a listing pay for four searches of text.
_TRIGGERS = re.compile(
    r"://|=|:|%3D|Bearer|AKIA|ASIA|AROA|AIDA",
    re.IGNORECASE,
)


class Redactor:
    """Replaces what looks like a secret. Immutable; safe from any thread."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        values = {v for k, v in environ.items() if len(v) >= _SHORTEST and _SECRET_NAME.fullmatch(k)}
        forms = {form for v in values for form in (v, quote(v, safe=""), quote(v))}
        # The longest first, so that a secret that contains another one goes whole.
        ordered = sorted(forms, key=lambda v: (-len(v), v))
        self._values = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def clean(self, text: str) -> str:
        """`text` with every secret replaced by `***`; text without any is returned unchanged."""
        if self._values is not None:
            text = self._values.sub(MASK, text)
        if not _TRIGGERS.search(text):
            return text
        text = _USERINFO.sub(lambda m: f"{m['scheme']}{MASK}@", text)
        text = _HEADER.sub(lambda m: f"{m['name'] or m['scheme']}{MASK}", text)
        text = _PARAMETER.sub(lambda m: f"{m['name']}{MASK}", text)
        return _ACCESS_KEY_ID.sub(MASK, text)
