"""The settings there are: one table, from which checks, `dvk config`, its help and the format page are made.

>>> find_key("remote.origin.url").scopes
('repo', 'user', 'local')
>>> find_key("store.max_size").parse("2 GiB")
2147483648

A setting in a tracked file comes from a stranger. So a key is allowed in scope `repo` only where the worst
value does no harm: nothing that runs a program, no secret, no place on this machine, no change to how a
connection is protected.
"""

from __future__ import annotations

import difflib
import re
from fractions import Fraction
from typing import Literal

from msgspec import Struct

from dvk.backend.text import printable, redact
from dvk.errors import FormatError, UsageError

Scope = Literal["repo", "user", "local", "env", "default"]
Setting = str | int | bool

#: later ones win
FILE_SCOPES: tuple[Scope, ...] = ("repo", "user", "local")
_EVERYWHERE: tuple[Scope, ...] = FILE_SCOPES
_OWN: tuple[Scope, ...] = ("user", "local")

DEFAULT_PROFILE = "auto-64k"

_REMOTE_NAME = re.compile(r"(?![-.])[A-Za-z0-9._-]{1,64}")
_PROFILE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_ID = re.compile(r"[0-9a-f]{32}")
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)")
_UNITS = {
    "B": 1,
    **{unit: 1000**i for i, unit in enumerate(("kB", "MB", "GB", "TB"), 1)},
    **{unit: 1024**i for i, unit in enumerate(("KiB", "MiB", "GiB", "TiB"), 1)},
}
_BOOLS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_SECRET = re.compile(r"(?i)secret|token|password|passwd|credential|access_?key|api_?key")
_MAX_TEXT = 2048
_MAX_COUNT = 86_400


class Key(Struct, frozen=True):
    """One setting: what it is called, what it may be, where it may stand."""

    name: str  #: `remote.<name>.url` stands for one key a remote
    type: Literal["text", "name", "profile", "bool", "size", "url", "endpoint", "path", "choice", "count", "id"]
    scopes: tuple[Scope, ...]
    doc: str
    env: str = ""  #: the environment variable that outranks all files
    choices: tuple[str, ...] = ()
    default: Setting | None = None

    def parse(self, text: str) -> Setting:
        """The value that a text from a terminal or an environment variable stands for.

        Raises:
            UsageError: it stands for none.
        """
        if self.type == "bool":
            if text.lower() not in _BOOLS:
                raise self._wrong("true or false")
            return _BOOLS[text.lower()]
        is_number = self.type in ("size", "count") and re.fullmatch(r"[0-9]{1,19}", text)
        return self.check(int(text) if is_number else text)

    def check(self, value: object) -> Setting:
        """`value` as it is used, if it is one that this key may have; sizes become bytes.

        Raises:
            UsageError: it is not. The value itself is not repeated: it may be a secret in the wrong place.
        """
        if self.type == "bool":
            if not isinstance(value, bool):
                raise self._wrong("true or false")
            return value
        if self.type == "size":
            return self._size(value)
        if self.type == "count":
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_COUNT:
                raise self._wrong(f"a whole number from 1 to {_MAX_COUNT:,}")
            return value
        if not isinstance(value, str) or not value or len(value) > _MAX_TEXT or not value.isprintable():
            raise self._wrong(f"a text of 1 to {_MAX_TEXT:,} printable characters")
        match self.type:
            case "choice" if value not in self.choices:
                raise self._wrong(f"one of {', '.join(self.choices)}")
            case "name":
                check_remote_name(value)
            case "profile" if not _PROFILE.fullmatch(value):
                raise self._wrong(f"the name of a profile, like {DEFAULT_PROFILE}")
            case "id" if not _ID.fullmatch(value):
                raise self._wrong("32 hex digits")
            case "url":
                check_url(value, subject=self.name)
            case "endpoint" if not re.fullmatch(r"https?://[^@/?#\s]+/?", value):
                raise self._wrong("http://HOST[:PORT] or https://HOST[:PORT], without a user")
            case "path" if not value.startswith(("/", "~/")):
                raise self._wrong("an absolute path, or one that starts with ~/")
        return value

    def _size(self, value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
            return value
        found = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if found is None or (size := Fraction(found[1]) * _UNITS[found[2]]) >= 2**63:
            raise self._wrong('a size in bytes, or a text like "500 MB" or "2 GiB"')
        return int(size)

    def _wrong(self, expected: str) -> UsageError:
        return UsageError(f"should be {expected}", subject=self.name)


KEYS: tuple[Key, ...] = (
    Key("core.remote", "name", _EVERYWHERE, "the remote to use when none is named", env="DVK_REMOTE"),
    Key(
        "remote.<name>.url",
        "url",
        _EVERYWHERE,
        "where the remote is: `s3://bucket/prefix` or an absolute path",
    ),
    Key("remote.<name>.endpoint_url", "endpoint", _OWN, "of an S3-compatible server"),
    Key("remote.<name>.region", "text", _OWN, "the region of the bucket"),
    Key("remote.<name>.profile", "text", _OWN, "the section of the AWS files to take credentials from"),
    Key(
        "remote.<name>.addressing",
        "choice",
        _OWN,
        "`path` for host/bucket, `virtual` for bucket.host",
        choices=("auto", "path", "virtual"),
    ),
    Key(
        "remote.<name>.sse",
        "choice",
        _OWN,
        "server-side encryption of what is written",
        choices=("AES256", "aws:kms"),
    ),
    Key("remote.<name>.sse_kms_key_id", "text", _OWN, "the key of `aws:kms`"),
    Key(
        "remote.<name>.checksum",
        "choice",
        _OWN,
        "`when_required` for servers that do not know the newer checksums",
        choices=("auto", "when_required"),
    ),
    Key(
        "remote.<name>.backend",
        "choice",
        _OWN,
        "the library that talks to s3, gs and az",
        choices=("auto", "obstore", "fsspec"),
    ),
    Key("remote.<name>.anon", "bool", _OWN, "send unsigned requests (public buckets)"),
    Key("remote.<name>.connect_timeout_s", "count", _OWN, "seconds to wait for a connection (10)"),
    Key("remote.<name>.read_timeout_s", "count", _OWN, "seconds to wait for the next byte (60)"),
    Key("remote.<name>.deadline_s", "count", _OWN, "seconds to repeat what fails for the moment (120)"),
    Key("remote.<name>.max_concurrency", "count", _OWN, "connections kept open (32)"),
    Key(
        "store.path",
        "path",
        _OWN,
        "where data is kept on this machine, in place of the Git folder",
        env="DVK_STORE",
    ),
    Key(
        "store.max_size",
        "size",
        _OWN,
        "how large the local store may be: `dvk gc` makes room above it",
        env="DVK_STORE_MAX_SIZE",
    ),
    Key(
        "cache.max_size",
        "size",
        _OWN,
        "how much whole files for `dvk.local_path` may take in the user's cache",
        env="DVK_CACHE_MAX_SIZE",
        default=20_000_000_000,
    ),
    Key(
        "hooks.push_limit",
        "size",
        _OWN,
        "how much the pre-push hook sends by itself",
        env="DVK_HOOKS_PUSH_LIMIT",
        default=1_000_000_000,
    ),
    Key(
        "hooks.large_file",
        "size",
        _EVERYWHERE,
        "from which size on the pre-commit hook warns of a file that would go into Git",
        env="DVK_HOOKS_LARGE_FILE",
        default=10_000_000,
    ),
    Key("project.id", "id", ("repo",), "whose records on a remote are whose, made by `dvk init`"),
    Key("profile.default", "profile", ("repo",), "how files are cut into chunks", default=DEFAULT_PROFILE),
)

_BY_NAME = {key.name: key for key in KEYS}
#: lists, which only an editor changes
LISTS = {
    "profile.path": "`pattern`, `use`: another profile for the paths that match",
    "table": "`path`, `key`: the key columns of tables",
}


def find_key(name: str) -> Key:
    """The key called `name`, where `<name>` may be any name of a remote (also one with dots).

    Raises:
        UsageError: there is none; a similar one is named.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name in LISTS:
        raise UsageError("is a list: edit dvk.toml to change it", subject=name)
    remote, option = split_remote_key(name)
    key = _BY_NAME.get(f"remote.<name>.{option}")
    if remote and key is not None:
        check_remote_name(remote)
        return key
    raise UsageError("no such setting", subject=printable(name)[:120], hint=_suggestion(name))


def split_remote_key(name: str) -> tuple[str, str]:
    """`remote.NAME.OPTION` in its two parts; two empty texts for any other key."""
    section, _, rest = name.partition(".")
    remote, _, option = rest.rpartition(".")
    return (remote, option) if section == "remote" and remote else ("", "")


def check_remote_name(name: str) -> str:
    """`name` itself, if a remote may be called that.

    Raises:
        UsageError: it may not.
    """
    if not _REMOTE_NAME.fullmatch(name):
        raise UsageError(
            "not the name of a remote",
            subject=printable(name)[:80],
            hint="1 to 64 letters, digits, `.`, `_` and `-`, starting with neither `-` nor `.`",
        )
    return name


def check_url(url: str, *, subject: str) -> str:
    """`url` itself, if it can be stored: no user, password, query or anything else that may be a secret.

    Whether dvk can open it, `dvk.backend.locate.parse_remote_url` says.

    Raises:
        UsageError: it cannot.
    """
    _, separator, rest = url.partition("://")
    problem = ""
    if not url or len(url) > _MAX_TEXT or not url.isprintable():
        problem = f"a URL has 1 to {_MAX_TEXT:,} printable characters"
    elif url.startswith("-"):
        problem = "starts with a dash, like an option"
    elif separator and "@" in rest.partition("/")[0]:
        problem = "holds a user name or password"
    elif separator and ("?" in rest or "#" in rest):
        problem = "has a query or fragment, which may be a secret"
    elif "::" in url and not re.match(r"[a-z]+://\[|/|file:", url):
        problem = "chains filesystems with `::`"
    if problem:
        raise UsageError(
            problem,
            subject=f"{subject} ({redact(url)[:120]})" if "password" not in problem else subject,
            hint="credentials belong where the AWS tools keep theirs: `aws configure`, environment or profile",
        )
    return url


def _suggestion(name: str) -> str:
    if _SECRET.search(name):
        return "dvk stores no secrets: use the AWS files and variables (`aws configure`, AWS_PROFILE)"
    close = difflib.get_close_matches(name, [*_BY_NAME, *LISTS], n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else "`dvk config --help` lists all settings"


def forbidden(key: Key, name: str, subject: str) -> FormatError:
    """The error for a key in a tracked file that only the user may set."""
    return FormatError(
        f"`{printable(name)}` belongs in your own configuration, not in a file that travels with the repository",
        subject=subject,
        hint=f"remove it there; `dvk config --local {printable(name)} ...` sets it for this clone"
        if "local" in key.scopes
        else "remove it there",
    )
