"""What the AWS tools of this machine are set to, as far as the fast way to S3 needs it.

    aws = read_aws(settings, environ)
    aws.reason                      # "" or why only botocore can say it ("the profile 'team' sets use_fips_endpoint")
    aws.region, aws.endpoint, aws.keys

Problem: botocore knows every variable and every line of `~/.aws`, and takes 100 ms to import (s3fs 300). Most set-ups
are two keys and a region. Choice: read those here, and name anything that we do not understand, so that the caller
leaves it to botocore as a whole. Keys are never guessed: where the profile speaks of roles, SSO or programs, `keys` is
None, and botocore is asked for them.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from dvk.backend.settings import RemoteSettings
from dvk.errors import UsageError

_WORD = re.compile(r"[!-~]*")


class Keys(Struct, frozen=True):
    """Long-lived or temporary keys. Never shown."""

    access: str
    secret: str
    token: str | None = None

    def __repr__(self) -> str:
        return "Keys()"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []  # rich would ask the Struct, and show them

    @property
    def plain(self) -> bool:
        """Whether they have no signs that no key has."""
        return all(_WORD.fullmatch(part) for part in (self.access, self.secret, self.token or ""))


class Aws(Struct, frozen=True):
    """The set-up for one remote."""

    profile: str = ""
    region: str = ""
    endpoint: str = ""  #: of a compatible server; empty for Amazon's own
    ca_bundle: str = ""
    keys: Keys | None = None  #: None: botocore finds them
    reason: str = ""  #: what is set that only botocore understands


# Settings of a profile that change nothing for us.
_HARMLESS = {"region", "output", "endpoint_url", "ca_bundle", "cli_pager", "cli_auto_prompt", "cli_history"} | {
    "retry_mode",
    "max_attempts",
    "parameter_validation",
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "aws_account_id",
}
# Settings that say where keys come from. botocore follows them, and nobody else needs to know.
_KEYS_ELSEWHERE = {
    "role_arn",
    "source_profile",
    "credential_source",
    "external_id",
    "mfa_serial",
    "role_session_name",
    "duration_seconds",
    "web_identity_token_file",
    "credential_process",
    "sso_session",
    "sso_start_url",
    "sso_region",
    "sso_account_id",
    "sso_role_name",
    "sso_registration_scopes",
    "login_session",
}
_VARIABLES = (
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT",
    "AWS_S3_DISABLE_MULTIREGION_ACCESS_POINTS",
)
_ENDPOINT = re.compile(r"https?://[!-~]+")
_NOT_IN_ENDPOINTS = re.compile(r"[@?#]")
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def check_environ(settings: RemoteSettings, environ: Mapping[str, str]) -> None:
    """Look at those variables of the AWS tools that will be used before a library sees them.

    What makes no sense there comes back as a connection that breaks, after many tries, or as a panic. A line end at the
    end of a key is the classic of CI jobs.

    Raises:
        UsageError: names the variable, never what is in it.
    """
    for variable in (
        *(() if settings.profile or settings.anon else _KEYS),
        *(() if settings.region else _REGIONS),
    ):
        if not _WORD.fullmatch(environ.get(variable, "")):
            raise UsageError("has a blank, a line end or another sign that cannot be there", subject=variable)
    for variable in () if settings.endpoint_url else _ENDPOINTS:
        if (value := environ.get(variable)) and not is_endpoint(value):
            raise UsageError(
                "is not the address of a server", subject=variable, hint="like https://HOST:PORT, without a user"
            )
    bundle = environ.get("AWS_CA_BUNDLE")
    if bundle and not os.access(bundle, os.R_OK):
        raise UsageError("names a file that cannot be read", subject="AWS_CA_BUNDLE", hint="unset it, or mend the path")


def is_endpoint(value: str) -> bool:
    """Whether libraries can be expected to take it for the address of a server."""
    return bool(_ENDPOINT.fullmatch(value)) and not _NOT_IN_ENDPOINTS.search(value)


def read_aws(settings: RemoteSettings, environ: Mapping[str, str]) -> Aws:
    """The set-up that settings, environment and the files of the AWS tools come to, in this order of strength."""
    profile = settings.profile or environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE") or "default"
    for variable in _VARIABLES:
        if environ.get(variable):
            return Aws(profile, reason=f"{variable} is set")
    config = _section(environ.get("AWS_CONFIG_FILE") or "~/.aws/config", profile, prefixed=True)
    secrets = _section(environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials", profile)
    if config is None or secrets is None:
        return Aws(profile, reason="the files of the AWS tools cannot be read")
    if profile != "default" and not config and not secrets:
        return Aws(profile, reason=f"there is no AWS profile {profile!r}")
    both = {**config, **secrets}
    odd = sorted(both.keys() - _HARMLESS - _KEYS_ELSEWHERE)
    if odd:
        return Aws(profile, reason=f"the AWS profile {profile!r} sets {odd[0]}")
    keys = None
    if environ.get("AWS_ACCESS_KEY_ID") and environ.get("AWS_SECRET_ACCESS_KEY") and not settings.profile:
        token = environ.get("AWS_SESSION_TOKEN") or environ.get("AWS_SECURITY_TOKEN")
        keys = Keys(environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"], token or None)
    elif not both.keys() & _KEYS_ELSEWHERE and not environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        for found in (secrets, config):
            if found.get("aws_access_key_id") and found.get("aws_secret_access_key"):
                token = found.get("aws_session_token")
                keys = Keys(found["aws_access_key_id"], found["aws_secret_access_key"], token or None)
                break
    return Aws(
        profile,
        region=settings.region
        or environ.get("AWS_REGION")
        or environ.get("AWS_DEFAULT_REGION")
        or both.get("region", ""),
        endpoint=settings.endpoint_url
        or environ.get("AWS_ENDPOINT_URL_S3")
        or environ.get("AWS_ENDPOINT_URL")
        or both.get("endpoint_url", ""),
        ca_bundle=environ.get("AWS_CA_BUNDLE") or both.get("ca_bundle", ""),
        keys=keys,
    )


def _section(path: str, profile: str, *, prefixed: bool = False) -> dict[str, str] | None:
    """The settings of a profile in one file; None when the file is there and cannot be read."""
    parser = configparser.RawConfigParser(default_section="", strict=False)
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            parser.read_file(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, configparser.Error):
        return None
    names = [f"profile {profile}", f'profile "{profile}"'] if prefixed and profile != "default" else [profile]
    if prefixed and profile == "default":
        names.append("profile default")
    for name in names:
        if parser.has_section(name):
            return {key.lower(): value for key, value in parser.items(name)}
    return {}
