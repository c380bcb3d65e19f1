"""Changing a file of settings: what the user wrote around a value stays as it is.

    set_value(files, "local", "remote.origin.region", "eu-west-1")
    unset(files, "repo", "core.remote")

Apart from reading, since the library that keeps comments is not needed for that. Each call reads, changes
and replaces one file durably; who may run at the same time as others holds the repository's lock around it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from dvk.backend.disk import OPEN_DIR, make_durable_dirs, storage_error
from dvk.errors import FormatError, NotFound, Refused, StorageError, UsageError
from dvk.store.names import show
from dvk.workspace.config import FORMAT, MAX_BYTES, ConfigFiles, Layer, Value
from dvk.workspace.durable import read_small, replace_file
from dvk.workspace.keys import Key, Scope, check_remote_name, find_key, split_remote_key


def set_value(files: ConfigFiles, scope: Scope, name: str, text: str) -> None:
    """Give a setting a value in one file; the file is made if need be.

    Raises:
        UsageError: no such setting, or not such a value.
        Refused: the setting does not belong in this file.
        FormatError, StorageError: the file cannot be understood or written.
    """
    key = find_key(name)
    _check_scope(key, name, scope)
    value = key.parse(text)
    # A size stays as it was written, since "2 GiB" says more than its bytes.
    document = _open(files, scope)
    section = _section(document, name, create=True)
    assert section is not None
    section[_option(name)] = text if key.type == "size" and not text.isdigit() else value
    _save(files, scope, document, lambda now: name in now and now[name].value == value)


def unset(files: ConfigFiles, scope: Scope, name: str) -> None:
    """Remove a setting from one file.

    Raises:
        NotFound: the file does not have it.
        UsageError, FormatError, StorageError: as `set_value`.
    """
    find_key(name)
    document = _open(files, scope)
    section = _section(document, name, create=False)
    if section is None or _option(name) not in section:
        raise NotFound("is not set there", subject=f"{_show(files, scope)}: {name}")
    del section[_option(name)]
    _save(files, scope, document, lambda now: name not in now)


def remove_remote(files: ConfigFiles, scope: Scope, name: str) -> bool:
    """Remove all settings of a remote from one file; whether there were any."""
    document = _open(files, scope)
    remotes = document.get("remote")
    if not isinstance(remotes, MutableMapping) or name not in remotes:
        return False
    del remotes[name]
    core = document.get("core")
    if isinstance(core, MutableMapping) and core.get("remote") == name:
        del core["remote"]
    _save(files, scope, document, lambda now: not any(split_remote_key(k)[0] == name for k in now))
    return True


def rename_remote(files: ConfigFiles, scope: Scope, old: str, new: str) -> bool:
    """Rename a remote in one file, also where it is the default; whether the file knew it.

    Raises:
        Refused: the file has a remote of the new name.
        UsageError: no remote can be called that.
    """
    check_remote_name(new)
    document = _open(files, scope)
    remotes, core = document.get("remote"), document.get("core")
    known = False
    if isinstance(remotes, MutableMapping) and old in remotes:
        if new in remotes:
            raise Refused("a remote of that name exists", subject=f"{_show(files, scope)}: remote.{new}")
        options = remotes[old]
        del remotes[old]
        remotes[new] = options
        known = True
    if isinstance(core, MutableMapping) and core.get("remote") == old:
        core["remote"] = new
        known = True
    if known:
        _save(files, scope, document, lambda now: not any(split_remote_key(k)[0] == old for k in now))
    return known


def _check_scope(key: Key, name: str, scope: Scope) -> None:
    if scope in key.scopes:
        return
    if scope == "repo":
        raise Refused(
            "belongs in your own configuration, not in a file that travels with the repository",
            subject=name,
            hint="use --local (this clone) or --global (all your repositories)",
        )
    raise Refused("belongs in dvk.toml", subject=name, hint="leave out --local and --global")


def _open(files: ConfigFiles, scope: Scope) -> tomlkit.TOMLDocument:
    path = files.path(scope)
    data = read_small(None, _real(path, scope), max_bytes=MAX_BYTES, subject=show(path))
    if data is None:
        document = tomlkit.document()
        if scope == "repo":
            document["format"] = FORMAT
        return document
    # Nothing is added to a file that could not be read back.
    Layer.parse(data, scope, place=_show(files, scope))
    try:
        return tomlkit.parse(data.decode("utf-8"))
    except TOMLKitError as e:
        raise FormatError("cannot be edited; change it by hand", subject=_show(files, scope)) from e


def _save(
    files: ConfigFiles,
    scope: Scope,
    document: tomlkit.TOMLDocument,
    as_wanted: Callable[[Mapping[str, Value]], bool],
) -> None:
    """Write a changed document, if reading it gives what was wanted: TOML can say one thing in many ways."""
    subject = _show(files, scope)
    data = tomlkit.dumps(document).encode("utf-8")
    try:
        written = Layer.parse(data, scope, place=subject).values
    except FormatError as e:
        raise UsageError(f"would make the file unreadable: {e.message}", subject=subject, hint=e.hint) from e
    if not as_wanted(written):
        raise FormatError("cannot be edited; change it by hand", subject=subject)
    folder, name = os.path.split(_real(files.path(scope), scope))
    try:
        make_durable_dirs(os.fsdecode(folder))
        dir_fd = os.open(folder, OPEN_DIR)
    except OSError as e:
        raise storage_error(e, subject) from e
    try:
        # The user's own files may name buckets and profiles that are nobody else's business.
        replace_file(dir_fd, name, data, subject=subject, mode=0o644 if scope == "repo" else 0o600)
    except StorageError as e:
        raise type(e)(e.message, subject=subject, hint=e.hint) from e
    finally:
        os.close(dir_fd)


def _real(path: bytes, scope: Scope) -> bytes:
    """Where the file is: one of the user's own that is a link is changed where it leads."""
    return os.path.realpath(path) if scope == "user" else path


def _show(files: ConfigFiles, scope: Scope) -> str:
    return "dvk.toml" if scope == "repo" else show(files.path(scope))


def _option(name: str) -> str:
    return name.rpartition(".")[2]


def _section(document: tomlkit.TOMLDocument, name: str, *, create: bool) -> MutableMapping[str, Any] | None:
    """The table that holds a key, made if need be."""
    remote, _ = split_remote_key(name)
    path = ["remote", remote] if remote else [name.partition(".")[0]]
    at: MutableMapping[str, Any] = document
    for i, part in enumerate(path):
        if part not in at:
            if not create:
                return None
            # `[remote]` itself is not written when it only holds `[remote.origin]`.
            at[part] = tomlkit.table(is_super_table=i < len(path) - 1)
        at = at[part]
    return at
