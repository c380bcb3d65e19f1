"""Foreign text made fit for a message: no terminal escapes, no credentials.

Names come from disks and answers come from servers, and both end up in errors that people paste into
tickets. Two functions stand between:

>>> printable("a\\x1b[31m")
'a\\\\x1b[31m'
>>> redact("GET https://me:hunter2@host/x?X-Amz-Signature=abc&y=1")
'GET https://***@host/x?X-Amz-Signature=***&y=1'

A list of known shapes is not proof against every secret, so foreign messages are also cut to one short
line, and nothing here ever receives request headers.
"""

from __future__ import annotations

import re

_LIMIT = 300

_SECRETS = (
    # https://user:password@host
    (re.compile(r"(?<=://)[^/\s@]+@"), "***@"),
    # query parameters and headers of signed requests, SAS tokens, OAuth
    (
        re.compile(
            r"(?i)\b(x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|awsaccesskeyid"
            r"|signature|sig|access_token|refresh_token|client_secret|aws_secret_access_key|aws_session_token"
            r"|secret(?:_?key)?|password|token|sharedaccesskey|accountkey)(\s*[=:]\s*)"
            r"(?:\"[^\"]*\"|'[^']*'|[^\s&,;<\"']+)"
        ),
        r"\1\2***",
    ),
    (re.compile(r"(?i)\bauthorization(\s*[=:]\s*).*"), r"authorization\1***"),
    (re.compile(r"(?i)\bbearer\s+[\w.~+/=-]+"), "Bearer ***"),
    # AWS access key ids and Google API keys, which name an account even if they open nothing
    (re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b"), "***"),
    (re.compile(r"\bAIza[\w-]{30,}"), "***"),
)


def printable(text: str) -> str:
    """`text` with everything a terminal would act on escaped, lone surrogates included."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def holds_secret(text: str) -> bool:
    """Whether `text` has something in it that `redact` would take out."""
    return any(pattern.search(text) for pattern, _ in _SECRETS)


def redact(text: str) -> str:
    """`text` on one line of at most 300 characters, without credentials in the shapes we know."""
    line = " ".join(text.split())
    for pattern, replacement in _SECRETS:
        line = pattern.sub(replacement, line)
    line = printable(line)
    return line if len(line) <= _LIMIT else line[: _LIMIT - 3] + "..."
