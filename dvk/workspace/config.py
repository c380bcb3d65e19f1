"""Settings: `dvk.toml` that travels with the repository, the user's own files, and the environment.

Each value knows where it came from, since trust depends on it, and since "why that remote?" is the first
question of everybody:

    config = Config.load(ConfigFiles.of(top, common_dir, environ), environ)
    config.get("core.remote")            # Value('origin', Origin('repo', 'dvk.toml'))
    config.remotes()["origin"].url

Files, order and bounds are specified in `docs/format/dvk-toml.md`, the keys are in `dvk.workspace.keys`;
changing a file is in `dvk.workspace.config_edit`. A `Config` is what was read once: it does not follow
later changes.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping

from msgspec import Struct

from dvk.backend.settings import RemoteSettings
from dvk.backend.text import printable
from dvk.errors import FormatError, NewerFormat, UsageError
from dvk.store.names import show
from dvk.workspace.durable import read_small
from dvk.workspace.gitignore import Pattern
from dvk.workspace.keys import (
    FILE_SCOPES,
    KEYS,
    LISTS,
    Scope,
    Setting,
    check_remote_name,
    find_key,
    forbidden,
    split_remote_key,
)

FILE_NAME = b"dvk.toml"
FORMAT = 1
MAX_BYTES = 1 << 20
MAX_RULES = 1000
MAX_COLUMNS = 64

_MAX_PARTS = 32
#: A dotted key costs tomllib the square of its parts: 10 KB of `a.a.a...` from a cloned repository took six seconds.
_PART = r"""\.[ \t]*(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*"""
_LONG_KEY = re.compile(f"(?:{_PART}){{{_MAX_PARTS}}}")
_CONFLICT = re.compile(r"^(?:<<<<<<< |>>>>>>> |\|\|\|\|\|\|\| |=======$)", re.MULTILINE)


class Origin(Struct, frozen=True):
    """Where a value came from: its scope, and the file or variable, for people."""

    scope: Scope
    place: str


class Value(Struct, frozen=True):
    """A setting and where it came from; sizes are in bytes."""

    value: Setting
    origin: Origin


class RemoteConfig(Struct, frozen=True):
    """A remote as it is configured. `origin` of the URL decides whether it must be trusted first."""

    name: str
    url: str
    origin: Origin
    settings: RemoteSettings


class ProfileRule(Struct, frozen=True):
    """`[[profile.path]]`: paths that match are cut by another profile."""

    pattern: str
    profile: str


class TableRule(Struct, frozen=True):
    """`[[table]]`: the key columns of the tables that match."""

    path: str
    key: tuple[str, ...]


class ConfigFiles(Struct, frozen=True):
    """The three files; each may be missing."""

    repo: bytes
    user: bytes
    local: bytes

    @classmethod
    def of(cls, top: bytes, local_dir: bytes, environ: Mapping[str, str]) -> ConfigFiles:
        """Where they lie for the work tree `top` with its dvk folder `local_dir`."""
        return cls(
            os.path.join(top, FILE_NAME),
            os.path.join(user_config_dir(environ), b"config.toml"),
            os.path.join(local_dir, b"config.toml"),
        )

    def path(self, scope: Scope) -> bytes:
        """The file of a scope that has one."""
        return {"repo": self.repo, "user": self.user, "local": self.local}[scope]


class Config(Struct, frozen=True):
    """All settings, each from the strongest place that has it."""

    files: ConfigFiles
    values: Mapping[str, Value]
    profile_rules: tuple[ProfileRule, ...] = ()
    table_rules: tuple[TableRule, ...] = ()

    @classmethod
    def load(cls, files: ConfigFiles, environ: Mapping[str, str], *, repo: Layer | None = None) -> Config:
        """Read the three files and the variables of the keys that have one.

        Args:
            repo: stands in for `dvk.toml` on disk, where a commit is read that is not checked out.

        Raises:
            FormatError: a file is no TOML, or has a key or value that is not allowed there; all is named.
            NewerFormat: a newer dvk wrote one.
            UsageError: a variable has a value that is not allowed.
        """
        values: dict[str, Value] = {}
        for key in KEYS:
            if key.default is not None:
                values[key.name] = Value(key.default, Origin("default", "built in"))
        profiles: tuple[ProfileRule, ...] = ()
        tables: tuple[TableRule, ...] = ()
        for scope in FILE_SCOPES:
            layer = repo if scope == "repo" and repo is not None else Layer.read(files.path(scope), scope)
            values.update(layer.values)
            profiles = layer.profile_rules or profiles
            tables = layer.table_rules or tables
        for key in KEYS:
            if key.env and environ.get(key.env):
                try:
                    values[key.name] = Value(key.parse(environ[key.env]), Origin("env", key.env))
                except UsageError as e:
                    raise UsageError(f"{e.message} ({key.name})", subject=key.env, hint=e.hint) from e
        return cls(files, values, profiles, tables)

    def get(self, key: str) -> Value | None:
        """The value of a setting; None when nothing sets it and it has no default.

        Raises:
            UsageError: there is no such setting.
        """
        find_key(key)
        return self.values.get(key)

    def text(self, key: str) -> str | None:
        """The value of a setting that is a text."""
        found = self.get(key)
        return str(found.value) if found else None

    def size(self, key: str) -> int | None:
        """The value of a setting that is a size, in bytes."""
        found = self.get(key)
        return int(found.value) if found else None

    def items(self) -> Iterator[tuple[str, Value]]:
        """All settings that have a value, by name."""
        yield from sorted(self.values.items())

    def remotes(self) -> dict[str, RemoteConfig]:
        """The remotes that have a URL, by name."""
        options: dict[str, dict[str, Value]] = {}
        for key, value in self.values.items():
            name, option = split_remote_key(key)
            if name:
                options.setdefault(name, {})[option] = value
        found = {}
        for name, values in sorted(options.items()):
            url = values.pop("url", None)
            if url is not None:
                settings = RemoteSettings(**{option: v.value for option, v in values.items()})  # type: ignore[arg-type]
                found[name] = RemoteConfig(name, str(url.value), url.origin, settings)
        return found

    def default_remote(self) -> str | None:
        """The remote to use when none is named: `core.remote`, else `origin`, else the only one."""
        named = self.text("core.remote")
        if named:
            return named
        remotes = self.remotes()
        return "origin" if "origin" in remotes else next(iter(remotes)) if len(remotes) == 1 else None

    def remote_order(self) -> list[str]:
        """All remotes in the order in which they are asked for data: the default, then as the files name them."""
        known = self.remotes()
        default = self.default_remote()
        named = [name for key in self.values if (name := split_remote_key(key)[0]) in known]
        return list(dict.fromkeys([*([default] if default in known else []), *named]))

    def profile_for(self, path: bytes) -> str:
        """The chunking profile of the data at `path`, from the top."""
        for rule in self.profile_rules:
            if _matches(rule.pattern, path):
                return rule.profile
        return str(self.values["profile.default"].value)

    def table_key(self, path: bytes) -> tuple[str, ...] | None:
        """The key columns of the table at `path`, from the top; None when no rule speaks about it."""
        return next((rule.key for rule in self.table_rules if _matches(rule.path, path)), None)


class Layer(Struct, frozen=True):
    """What one file says."""

    values: Mapping[str, Value]
    profile_rules: tuple[ProfileRule, ...] = ()
    table_rules: tuple[TableRule, ...] = ()

    @classmethod
    def read(cls, path: bytes, scope: Scope) -> Layer:
        """The settings in a file; none when it does not exist. Errors as `Config.load`."""
        # The user's own file may be a link into a folder of dotfiles; what was cloned may not.
        data = read_small(None, path, max_bytes=MAX_BYTES, subject=show(path), follow=scope == "user")
        return cls({}) if data is None else cls.parse(data, scope, place=_place(path, scope))

    @classmethod
    def parse(cls, data: bytes, scope: Scope, *, place: str) -> Layer:
        """The settings in the bytes of a file; `place` names it in errors and origins."""
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as e:
            raise FormatError("is not UTF-8 text", subject=place) from e
        if _CONFLICT.search(text):
            raise FormatError("has unresolved merge conflict markers", subject=place, hint="edit it, then `git add` it")
        if _LONG_KEY.search(text):
            raise FormatError(f"has a key of more than {_MAX_PARTS} parts", subject=place)
        try:
            document = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError, ValueError) as e:
            raise FormatError(f"is no valid TOML: {printable(str(e))[:120]}", subject=place) from e
        _check_format(document.pop("format", None), scope, place)
        origin = Origin(scope, place)
        values = {}
        lists: dict[str, object] = {}
        for name, value in _flatten(document, place):
            if name in LISTS:
                if scope != "repo":
                    raise FormatError(f"`{name}` belongs in dvk.toml", subject=place)
                lists[name] = value
            else:
                values[name] = Value(_check(name, value, scope, place), origin)
        return cls(values, _profile_rules(lists.get("profile.path"), place), _table_rules(lists.get("table"), place))


def user_config_dir(environ: Mapping[str, str]) -> bytes:
    """The user's folder of settings for dvk: DVK_CONFIG_HOME, else the platform's."""
    if environ.get("DVK_CONFIG_HOME"):
        return os.fsencode(os.path.abspath(environ["DVK_CONFIG_HOME"]))
    return os.path.join(_user_dir(environ, "XDG_CONFIG_HOME", ".config", "Library/Application Support"), b"dvk")


def user_cache_dir(environ: Mapping[str, str]) -> bytes:
    """The user's cache folder for dvk: DVK_CACHE_HOME, else the platform's."""
    if environ.get("DVK_CACHE_HOME"):
        return os.fsencode(os.path.abspath(environ["DVK_CACHE_HOME"]))
    return os.path.join(_user_dir(environ, "XDG_CACHE_HOME", ".cache", "Library/Caches"), b"dvk")


def home_dir(environ: Mapping[str, str]) -> str:
    """The user's home: HOME, else what the system's list of users says."""
    return environ.get("HOME") or os.path.expanduser("~")


def _user_dir(environ: Mapping[str, str], variable: str, plain: str, macos: str) -> bytes:
    set_by_user = environ.get(variable, "")
    if os.path.isabs(set_by_user):  # the specification says to ignore others
        return os.fsencode(set_by_user)
    return os.fsencode(os.path.join(home_dir(environ), macos if sys.platform == "darwin" else plain))


def _place(path: bytes, scope: Scope) -> str:
    return "dvk.toml" if scope == "repo" else show(path)


def _check_format(found: object, scope: Scope, place: str) -> None:
    if found is None and scope != "repo":
        return
    if found is None:
        raise FormatError("the line `format = 1` is missing", subject=place, hint="write it above the first section")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise FormatError("`format` should be 1", subject=place)
    if found > FORMAT:
        raise NewerFormat(
            f"written by a newer dvk (format {found}, this dvk reads {FORMAT})",
            subject=place,
            hint="upgrade dvk: `pip install --upgrade dvk`",
        )


def _flatten(document: Mapping[str, object], place: str) -> Iterator[tuple[str, object]]:
    """Dotted names and values; sections that dvk does not know come out as names that no key has."""
    for section, content in document.items():
        if section == "table" or not isinstance(content, dict):
            yield section, content
        elif section == "remote":
            for name, options in content.items():
                try:
                    check_remote_name(name)
                except UsageError as e:
                    raise FormatError(e.message, subject=f"{place}: remote.{e.subject}", hint=e.hint) from e
                if not isinstance(options, dict):
                    raise FormatError("should be a section with a `url`", subject=f"{place}: remote.{name}")
                yield from ((f"remote.{name}.{option}", value) for option, value in options.items())
        else:
            yield from ((f"{section}.{option}", value) for option, value in content.items())


def _check(name: str, value: object, scope: Scope, place: str) -> Setting:
    subject = f"{place}: {printable(name)[:120]}"
    try:
        key = find_key(name)
        if scope not in key.scopes:
            if scope == "repo":
                raise forbidden(key, name, subject)
            raise FormatError("belongs in dvk.toml", subject=subject)
        return key.check(value)
    except UsageError as e:
        raise FormatError(e.message, subject=subject, hint=e.hint) from e


def _rows(found: object, name: str, wanted: set[str], place: str) -> list[dict[str, object]]:
    """The entries of a list of tables, each with exactly the keys that it must have."""
    if found is None:
        return []
    if not isinstance(found, list) or len(found) > MAX_RULES or any(not isinstance(row, dict) for row in found):
        raise FormatError(f"should be at most {MAX_RULES:,} sections `[[{name}]]`", subject=f"{place}: {name}")
    for i, row in enumerate(found, 1):
        if set(row) != wanted:
            raise FormatError(
                f"entry {i} should have exactly {' and '.join(f'`{w}`' for w in sorted(wanted))}",
                subject=f"{place}: {name}",
            )
    return found


def _profile_rules(found: object, place: str) -> tuple[ProfileRule, ...]:
    rows = _rows(found, "profile.path", {"pattern", "use"}, place)
    return tuple(
        ProfileRule(
            _pattern(row["pattern"], f"{place}: profile.path"),
            str(_check("profile.default", row["use"], "repo", place)),
        )
        for row in rows
    )


def _table_rules(found: object, place: str) -> tuple[TableRule, ...]:
    rules = []
    for row in _rows(found, "table", {"path", "key"}, place):
        columns = row["key"]
        if (
            not isinstance(columns, list)
            or not 1 <= len(columns) <= MAX_COLUMNS
            or any(not isinstance(c, str) or not c or len(c) > 1000 for c in columns)
            or len(set(columns)) != len(columns)
        ):
            raise FormatError(
                f"`key` should be a list of 1 to {MAX_COLUMNS} names of columns", subject=f"{place}: table"
            )
        rules.append(TableRule(_pattern(row["path"], f"{place}: table"), tuple(columns)))
    return tuple(rules)


def _pattern(found: object, subject: str) -> str:
    if isinstance(found, str) and 0 < len(found) <= 1000 and "\n" not in found and not found.startswith("!"):
        parsed = Pattern.parse(found.encode())
        if parsed is not None:
            return found
    raise FormatError("a pattern should be a line of gitignore's grammar, without `!`", subject=subject)


def _matches(pattern: str, path: bytes) -> bool:
    """Whether a pattern speaks about `path` or a folder above it."""
    parsed = Pattern.parse(pattern.encode())
    if parsed is None:
        return False
    is_dir = False
    while path:
        if parsed.matches(path, is_dir=is_dir):
            return True
        path = path.rpartition(b"/")[0]
        is_dir = True
    return False
