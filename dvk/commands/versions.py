"""Which versions of data the history of this repository names: what `push`, `status` and `du` go through.

A version is a root (an id with its size) under a path. Reading history costs a run of Git; the answer for one commit
never changes, so it is kept by commit.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec import Struct
from xxhash import xxh3_64_hexdigest

from dvk.commands.repo import Repo, root_of
from dvk.errors import DvkError
from dvk.store.names import show
from dvk.store.root import FOLDER, Root
from dvk.store.store import Store, as_column
from dvk.workspace.pointer import data_name, parse

_CACHE_VERSION = 2


class Named(Struct, frozen=True):
    """A root that some version of a pointer names; `commit` brought it (empty: the index or the work tree)."""

    path: bytes
    root: Root
    commit: str = ""


def _pass_over(_error: DvkError) -> None:
    """`status` names a pointer that is broken now; one that once was is history."""


def history(
    repo: Repo,
    revs: Sequence[str],
    *,
    paths: Sequence[bytes] = (),
    original: bool = False,
    on_bad: Callable[[DvkError], None] = _pass_over,
) -> Iterator[Named]:
    """Every version reachable from `revs`, newest first; `on_bad` hears of pointers that cannot be read.

    Args:
        original: pass over `git replace`.

    Raises:
        NotFound: a revision does not exist.
    """
    git = repo.workspace.git
    if git is None:
        return
    versions = [v for v in git.pointer_versions(revs, paths=paths, original=original) if v.oid is not None]
    for version, data in zip(versions, git.read_blobs(v.oid or "" for v in versions), strict=True):
        try:
            pointer = parse(data, subject=show(version.path))
        except DvkError as error:
            on_bad(error)
            continue
        yield Named(data_name(version.path), root_of(pointer), version.commit)


def head_history(repo: Repo) -> list[Named]:
    """Every version reachable from HEAD, newest first, remembered by commit."""
    git = repo.workspace.git
    head = git.head() if git is not None and git.has_program else None
    if head is None:
        return []
    cache = os.path.join(repo.state, b"history.json")
    found = load_history(cache, head)
    if found is None:
        found = list(history(repo, [head]))
        save_history(cache, head, found)
    return found


def load_history(cache: bytes, head: str) -> list[Named] | None:
    """The history that was remembered for a commit; None where none was, or it is damaged."""
    try:
        with open(cache, encoding="ascii") as file:
            raw = json.load(file)
        if raw["version"] != _CACHE_VERSION or raw["head"] != head or raw["check"] != _check(raw["versions"]):
            return None
        return [
            Named(bytes.fromhex(path), Root(kind, bytes.fromhex(name), size, files), commit)
            for path, kind, name, size, files, commit in raw["versions"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check(rows: Sequence[object]) -> str:
    """A checksum: an id with one bit turned over would be a version that this clone never had."""
    return xxh3_64_hexdigest(json.dumps(rows, separators=(",", ":")).encode("ascii"))


def save_history(cache: bytes, head: str, found: Iterable[Named]) -> None:
    """Remember the history of a commit. A failure to write is no error."""
    rows = [(v.path.hex(), v.root.kind, v.root.id.hex(), v.root.size, v.root.files, v.commit) for v in found]
    temporary = cache + b"." + secrets.token_hex(8).encode() + b".tmp"
    try:
        os.makedirs(os.path.dirname(cache), mode=0o700, exist_ok=True)
        with open(temporary, "x", encoding="ascii") as file:
            json.dump({"version": _CACHE_VERSION, "head": head, "check": _check(rows), "versions": rows}, file)
        os.replace(temporary, cache)
    except OSError:
        return  # a read-only repository: history is read again next time


def staged(repo: Repo, *, conflicts: bool = False, on_bad: Callable[[DvkError], None] = _pass_over) -> list[Named]:
    """The versions in the Git index; with `conflicts` all sides of those, too."""
    git = repo.workspace.git
    if git is None or not git.has_program:
        return []
    rows = [e for e in git.index_pointers() if conflicts or e.stage == 0]
    out = []
    for entry, data in zip(rows, git.read_blobs(e.oid for e in rows), strict=True):
        try:
            out.append(Named(data_name(entry.path), root_of(parse(data, subject=show(entry.path)))))
        except DvkError as error:
            on_bad(error)
    return out


def roots_here(store: Store, roots: Sequence[Root]) -> list[bool]:
    """For each root whether this store knows it: a file's chunk or recipe, a folder's root page. One lookup for all."""
    if not roots:
        return []
    ids = as_column([r.id for r in roots])
    pages = store.has_chunks(ids)
    rows = store.find_recipes(ids)
    out = []
    for root, page, row in zip(roots, pages.tolist(), rows, strict=True):
        if root.kind == FOLDER:
            out.append(page)
        else:
            out.append(root.size == 0 or page or (row is not None and row.size == root.size))
    return out
