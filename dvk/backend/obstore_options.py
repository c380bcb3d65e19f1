"""How obstore reaches S3, Google Cloud Storage and Azure, or why it had better not.

    plan_s3("acme", "churn", settings, environ)        # S3Plan, or Unfit("no region is set")

obstore is Rust's object_store: 12 ms to import where s3fs takes 300, a quarter of the processor time for a small
request. It knows fewer ways to be set up than botocore, it reads the environment behind our back, and it follows
redirects with the session token in its hands. So everything is said here explicitly, and a set-up that is out of the
ordinary is `Unfit`: s3fs takes it, and `dvk doctor` says why.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import Struct

from dvk.backend.aws_files import Aws, Keys, is_endpoint, read_aws
from dvk.backend.remote_errors import why_no_process
from dvk.backend.settings import RemoteSettings
from dvk.errors import UsageError

# object_store has rules of its own for keys; among these signs they are everybody's.
_PLAIN = re.compile(r"[A-Za-z0-9._/=-]*")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_REGION = re.compile(r"(af|ap|ca|eu|il|me|mx|sa|us)-[a-z]+-[0-9]+")
# botocore renews keys ten minutes before they end; nobody asks it more often than this.
_KEYS_LAST = timedelta(minutes=4)

_GOOGLE = {
    "GOOGLE_SERVICE_ACCOUNT": "service_account",
    "GOOGLE_SERVICE_ACCOUNT_PATH": "service_account",
    "GOOGLE_SERVICE_ACCOUNT_KEY": "service_account_key",
    "GOOGLE_APPLICATION_CREDENTIALS": "application_credentials",
}
_AZURE = {
    "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
    "AZURE_STORAGE_SAS_TOKEN": "sas_key",
    "AZURE_STORAGE_SAS_KEY": "sas_key",
    "AZURE_CLIENT_ID": "client_id",
    "AZURE_CLIENT_SECRET": "client_secret",
    "AZURE_TENANT_ID": "tenant_id",
    "AZURE_FEDERATED_TOKEN_FILE": "federated_token_file",
    "AZURE_STORAGE_ENDPOINT": "endpoint",
}


class Unfit(Struct, frozen=True):
    """Why obstore is not used for a remote."""

    reason: str


class Plan(Struct, frozen=True):
    """What the constructor of a store gets: `kind` of s3, gcs, azure, the bucket or container, and its options."""

    kind: str
    place: str
    config: Mapping[str, Any]
    client: Mapping[str, Any]
    keys: Callable[[], dict[str, Any]] | None = None  #: asked for credentials, again and again


def plan_s3(
    bucket: str, prefix: str, settings: RemoteSettings, environ: Mapping[str, str], *, offline: bool = False
) -> Plan | Unfit:
    """Options for a bucket of S3. Reads the files of the AWS tools.

    Contacts nothing, except where the keys come from a service: botocore gets them then, unless `offline`.
    """
    if not _BUCKET.fullmatch(bucket):
        return Unfit("the name of the bucket is unusual")
    if not _PLAIN.fullmatch(prefix):
        return Unfit("the prefix has unusual signs")
    aws = read_aws(settings, environ)
    if aws.reason:
        return Unfit(aws.reason)
    # object_store panics at what it cannot put into an address or a header.
    if aws.endpoint and not is_endpoint(aws.endpoint):
        return Unfit("the endpoint is not the address of a server")
    if not _PLAIN.fullmatch(aws.region):
        return Unfit("the region has unusual signs")
    if aws.keys is not None and not aws.keys.plain:
        return Unfit("the keys have unusual signs")
    amazon = not aws.endpoint
    if amazon and not aws.region:
        return Unfit("no region is set")
    if amazon and not _REGION.fullmatch(aws.region):
        return Unfit(f"the region {aws.region!r} has its own kind of addresses")
    virtual = settings.addressing == "virtual" or (amazon and settings.addressing == "auto")
    config: dict[str, Any] = {
        # Each of these would otherwise be taken from a variable of the process.
        "region": aws.region or "us-east-1",
        "virtual_hosted_style_request": virtual,
        "skip_signature": settings.anon,
        "unsigned_payload": False,
        "conditional_put": "etag",
        "s3_express": False,
        "disable_bulk_delete": True,
    }
    endpoint = aws.endpoint.rstrip("/") or f"https://s3.{aws.region}.amazonaws.com"
    if virtual:
        scheme, _, host = endpoint.partition("://")
        endpoint = f"{scheme}://{bucket}.{host}"
    config["endpoint"] = config["aws_endpoint_url_s3"] = endpoint
    if settings.sse:
        config["server_side_encryption"] = settings.sse
    if settings.sse_kms_key_id:
        config["sse_kms_key_id"] = settings.sse_kms_key_id
    client = _client(settings, allow_http=endpoint.startswith("http://"))
    if aws.ca_bundle:
        try:
            with open(aws.ca_bundle, "rb") as file:
                client["root_certificate"] = file.read()
        except OSError:
            return Unfit("the file of AWS_CA_BUNDLE cannot be read")
    if settings.anon:
        return Plan("s3", bucket, config, client)
    # A redirect is followed with the token in its headers. Amazon's own servers send nobody anywhere else.
    if not amazon and (aws.keys is None or aws.keys.token):
        what = "no long-lived keys for" if aws.keys is None else "temporary credentials on"
        return Unfit(f"{what} a server that is not Amazon's")
    if aws.keys is not None:
        keys = aws.keys
        return Plan("s3", bucket, config, client, lambda: _credential(keys))
    if offline:
        return Plan("s3", bucket, config, client)
    return _with_botocore(bucket, aws, settings, environ, config, client)


def _with_botocore(
    bucket: str,
    aws: Aws,
    settings: RemoteSettings,
    environ: Mapping[str, str],
    config: Mapping[str, Any],
    client: Mapping[str, Any],
) -> Plan | Unfit:
    """Keys from roles, SSO, programs and machines: botocore's session finds and renews them."""
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    named = settings.profile or environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE")
    try:
        session = Session(profile=named or None)
        for variable, value in (
            ("config_file", environ.get("AWS_CONFIG_FILE")),
            ("credentials_file", environ.get("AWS_SHARED_CREDENTIALS_FILE")),
            ("ca_bundle", aws.ca_bundle),
            ("region", aws.region),
        ):
            if value:
                session.set_config_variable(variable, value)
        found = session.get_credentials()
    except BotoCoreError:
        return Unfit("botocore finds no credentials")  # and says why when s3fs asks it
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if why_no_process(error):
            return Unfit("its credential_process fails")
        raise
    if found is None:
        return Unfit("botocore finds no credentials")

    def keys() -> dict[str, Any]:
        try:
            frozen = found.get_frozen_credentials()
        except Exception as error:
            program = why_no_process(error)
            if program:
                raise RuntimeError(f"Credential error: {program}") from None  # obstore quotes what it gets
            raise
        return _credential(Keys(frozen.access_key, frozen.secret_key, frozen.token), lasts=_KEYS_LAST)

    return Plan("s3", bucket, config, client, keys)


def plan_gcs(bucket: str, prefix: str, settings: RemoteSettings, environ: Mapping[str, str]) -> Plan | Unfit:
    """Options for a bucket of Google Cloud Storage; credentials as Google's own libraries look for them."""
    if not _PLAIN.fullmatch(prefix):
        return Unfit("the prefix has unusual signs")
    config: dict[str, Any] = {"skip_signature": settings.anon}
    if not settings.anon:
        config |= {key: environ[name] for name, key in _GOOGLE.items() if environ.get(name)}
    return Plan("gcs", bucket, config, _client(settings, allow_http=False))


def plan_azure(container: str, prefix: str, settings: RemoteSettings, environ: Mapping[str, str]) -> Plan | Unfit:
    """Options for a container of Azure Blob Storage.

    Raises:
        UsageError: nothing says which account.
    """
    if not _PLAIN.fullmatch(prefix):
        return Unfit("the prefix has unusual signs")
    account = environ.get("AZURE_STORAGE_ACCOUNT_NAME") or environ.get("AZURE_STORAGE_ACCOUNT")
    if not account:
        raise UsageError(
            "nothing says which storage account", subject=f"az://{container}", hint="set AZURE_STORAGE_ACCOUNT_NAME"
        )
    config: dict[str, Any] = {"account_name": account, "skip_signature": settings.anon}
    if not settings.anon:
        given = {key: environ[name] for name, key in _AZURE.items() if environ.get(name)}
        config |= given
        on_azure = environ.get("IDENTITY_ENDPOINT") or environ.get("MSI_ENDPOINT")
        if not given.keys() - {"endpoint"} and not on_azure and shutil.which("az"):
            config["use_azure_cli"] = True  # what `az login` left
    return Plan("azure", container, config, _client(settings, allow_http=False))


def _client(settings: RemoteSettings, *, allow_http: bool) -> dict[str, Any]:
    """Options of the HTTP client. How long a whole request may take, its maker adds."""
    return {
        "allow_http": allow_http,
        "allow_invalid_certificates": False,
        "connect_timeout": timedelta(seconds=settings.connect_timeout_s),
        "pool_max_idle_per_host": str(settings.max_concurrency),
    }


def _credential(keys: Keys, *, lasts: timedelta | None = None) -> dict[str, Any]:
    """What obstore wants to hear."""
    until = None if lasts is None else datetime.now(UTC) + lasts
    return {
        "access_key_id": keys.access,
        "secret_access_key": keys.secret,
        "token": keys.token,
        "expires_at": until,
    }
