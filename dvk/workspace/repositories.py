"""Which repositories use a local store: garbage is only what none of them needs.

    register(workspace)                      # by every verb that adds; costs a look at one file
    for user in users(workspace): ...

The store in a repository's own Git folder belongs to it without saying so, and moves with it. Any other one lists its
repositories in `r/` (docs/format/store.md); one that cannot be opened stops a collection until it is back or forgotten.
"""

from __future__ import annotations

import json
import os
import re
import secrets

from blake3 import blake3
from msgspec import Struct

from dvk.backend.disk import OPEN_DIR, make_durable_dirs, translate
from dvk.backend.local import LocalBackend
from dvk.errors import NotFound, Unsafe
from dvk.store.names import show
from dvk.workspace.durable import exists, read_small, replace_file
from dvk.workspace.repo import Workspace

_KEY = re.compile(r"r/[0-9a-f]{32}")
_ID = re.compile(r"[0-9a-f]{32}")
_IDENTITY = b"repository"
_MAX_BYTES = 1 << 20


class User(Struct, frozen=True):
    """A repository that uses a store. `key` is empty where the store lies in its own Git folder."""

    path: bytes  #: the common Git folder, or the plain folder
    top: bytes  #: a work tree of it
    key: str = ""
    id: str = ""  #: random, of the repository: another one may come to lie in its place


def register(workspace: Workspace) -> None:
    """See that the store lists this workspace, durably.

    Raises:
        StorageError, StorageFull: it cannot be written; then nothing may be added.
    """
    me = _of(workspace)
    if _owner(workspace.store_dir) == me.path:
        return
    backend = LocalBackend(os.fsdecode(workspace.store_dir))
    name = identity(workspace) or _give_identity(workspace)
    key = _key(me.path, name)
    if backend.stat(key) is not None and os.path.isdir(_load(backend, key).top):
        return
    raw = {"format": 1, "id": name, "path": me.path.hex(), "top": me.top.hex()}
    backend.put(key, [(json.dumps(raw, indent=2, sort_keys=True) + "\n").encode("ascii")])


def identity(workspace: Workspace) -> str:
    """The random id of a repository that uses a store elsewhere; empty when it never did."""
    path = os.path.join(workspace.common_dir, _IDENTITY)
    found = read_small(None, path, max_bytes=100, subject=show(path))
    text = (found or b"").decode("ascii", "replace").strip()
    return text if _ID.fullmatch(text) else ""


def _give_identity(workspace: Workspace) -> str:
    name = secrets.token_hex(16)
    with translate(show(workspace.common_dir)):
        make_durable_dirs(os.fsdecode(workspace.common_dir))
        fd = os.open(workspace.common_dir, OPEN_DIR)
    try:
        replace_file(fd, _IDENTITY, name.encode() + b"\n", subject=show(workspace.common_dir))
    finally:
        os.close(fd)
    return identity(workspace)  # two that start at once end up with one


def users(workspace: Workspace) -> list[User]:
    """All repositories that use the store of this workspace, itself included.

    Raises:
        Unsafe: an entry cannot be read.
    """
    me = _of(workspace)
    owner = _owner(workspace.store_dir)
    found = [me]
    if owner is not None and owner != me.path:
        found.append(User(owner, os.path.dirname(owner)))
    backend = LocalBackend(os.fsdecode(workspace.store_dir))
    mine = _key(me.path, identity(workspace))
    for item in backend.list("r/"):
        if not _KEY.fullmatch(item.key):
            raise _unreadable(backend, item.key)
        if item.key != mine:
            found.append(_load(backend, item.key))
    return found


def is_user(workspace: Workspace, user: User) -> bool:
    """Whether a workspace is of that repository and not of another one in its place."""
    return _of(workspace).path == user.path and (not user.key or identity(workspace) == user.id)


def forget(workspace: Workspace, path: str | bytes) -> bytes:
    """Take a repository off the list of the store of this workspace; its path.

    Args:
        path: as it is listed: its top, or its Git folder.

    Raises:
        NotFound: the store does not list it.
    """
    wanted = os.path.abspath(os.fsencode(path))
    backend = LocalBackend(os.fsdecode(workspace.store_dir))
    for user in users(workspace):
        if wanted in (user.path, user.top, os.path.dirname(user.path)) and user.key:
            backend.delete(user.key)
            return user.top
    listed = ", ".join(show(u.top) for u in users(workspace) if u.key) or "none"
    raise NotFound("this store does not list it", subject=show(wanted), hint=f"it lists: {listed}")


def _of(workspace: Workspace) -> User:
    path = workspace.git.common_dir if workspace.git is not None else workspace.top
    return User(os.path.realpath(path), workspace.top)


def _owner(store_dir: bytes) -> bytes | None:
    """The Git folder that a store lies in, as dvk puts it there. StorageError: the disk does not tell."""
    rest, name = os.path.split(os.path.realpath(store_dir))
    common, dvk = os.path.split(rest)
    return common if (dvk, name) == (b"dvk", b"store") and exists(os.path.join(common, b"HEAD")) else None


def _key(path: bytes, name: str) -> str:
    # A repository that was copied has the id of the other, and one that took its place has the path.
    return f"r/{blake3(name.encode() + path).hexdigest()[:32]}"


def _load(backend: LocalBackend, key: str) -> User:
    try:
        raw = json.loads(backend.get(key, max_bytes=_MAX_BYTES))
        if raw["format"] != 1 or set(raw) != {"format", "id", "path", "top"} or not _ID.fullmatch(raw["id"]):
            raise ValueError("format")
        return User(bytes.fromhex(raw["path"]), bytes.fromhex(raw["top"]), key, raw["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(backend, key) from error


def _unreadable(backend: LocalBackend, key: str) -> Unsafe:
    return Unsafe(
        "this should name a repository that uses the store and cannot be read; nothing was deleted",
        subject=f"{backend.name}/{key}",
        hint="upgrade dvk if a newer one wrote it; if it is damaged, remove it and run any dvk verb in that repository",
    )
