"""The HTTP client of read-only mirrors: it stays on the server that the user trusted.

A mirror at https://data.example.org was trusted by name (`dvk remote trust`). A redirect to another host, port or an
unprotected connection leads to a place that nobody was asked about, maybe inside the user's own network, so it is an
error that names the place. Redirects on the same server, and from http to https of it, are followed.
"""

from __future__ import annotations

from typing import Any

import aiohttp
from yarl import URL

from dvk.backend.remote_errors import Interjected
from dvk.backend.text import redact


async def no_redirects_elsewhere(**arguments: Any) -> aiohttp.ClientSession:
    """A session as fsspec wants one (`HTTPFileSystem(get_client=...)`)."""
    watch = aiohttp.TraceConfig()
    watch.on_request_redirect.append(_check)
    return aiohttp.ClientSession(trace_configs=[watch], **arguments)


async def _check(_session: object, _context: object, params: aiohttp.TraceRequestRedirectParams) -> None:
    said = params.response.headers.get("Location") or params.response.headers.get("URI") or ""
    try:
        target = params.url.join(URL(said))
        here = target.origin() == params.url.origin()
        safer = (params.url.scheme, target.scheme) == ("http", "https") and target.host == params.url.host
    except ValueError:
        raise Interjected("the server redirects to something that is no address", subject=redact(said)) from None
    if not here and not (safer and target.port == 443):
        raise Interjected(
            f"the server redirects to {redact(str(target.origin()))}, which dvk does not follow",
            subject=redact(str(params.url)),
            hint="if that is the right place, make it the URL of the remote",
        )
