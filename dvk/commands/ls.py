"""`dvk ls`: what is tracked, and what tracked folders hold, in the work tree or at a revision.

One level of a folder of a million files costs the pages around its borders: a page that lies in one subfolder as a
whole is counted by what its parent says of it, and never read. Works without Git, and in a clone that has no data:
pages come from the remote then.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from dvk.commands.reader import Reader
from dvk.commands.repo import Repo
from dvk.commands.spec import Target, Version, not_tracked, open_version, parse_spec, place
from dvk.errors import DataMissing, DvkError, NotFound
from dvk.events import OnEvent, ignore
from dvk.ids import PageId
from dvk.store.listing import Entries, Kind
from dvk.store.names import show
from dvk.store.pages import ListKind, Load, PageRef, leaf_refs, leaves_under, load_leaf
from dvk.workspace.pointer import Pointer


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a listing."""

    path: bytes  #: from the top of the work tree
    kind: str  #: "file", "dir" or "link"
    size: int  #: bytes; of a folder all its files together
    files: int  #: 1 for a file, 0 for a link
    id: bytes | None = None  #: None for links, and for folders inside tracked ones, which have no id of their own
    exec: bool = False
    target: bytes | None = None  #: of a link
    tracked: bool = False  #: it has a pointer of its own


@dataclass(slots=True)
class Listing:
    """The answer."""

    rev: str | None
    entries: list[Listed] = field(default_factory=list)
    failures: list[DvkError] = field(default_factory=list)  #: pointers that cannot be read
    remote: str = ""  #: where pages were read from that are not here


def ls(
    repo: Repo,
    spec: str | bytes = "",
    *,
    recursive: bool = False,
    remote: str | None = None,
    on_event: OnEvent = ignore,
) -> Listing:
    """List what a spec means: all tracked paths (no spec), those in a folder, or what a tracked folder holds.

    Args:
        recursive: every file of tracked folders, in place of one level.

    Raises:
        NotFound: nothing tracked is there. DataMissing: the list of a folder is neither here nor on the remote.
    """
    parsed = parse_spec(spec) if spec else None
    version = open_version(repo, parsed) if parsed else Version(repo, None)
    path = place(repo, parsed) if parsed else b""
    out = Listing(version.rev)
    with Reader(repo, remote=remote, on_event=on_event) as reader:
        found = version.owner(path) if path else None
        if found is not None:
            owner, inner, pointer = found
            _tracked(reader, Target(owner, inner, pointer, version.rev, version.commit), out, recursive=recursive)
        else:
            _below(reader, version, path, out, recursive=recursive)
            if path and not out.entries and not out.failures:
                raise not_tracked(version, path)
        out.remote = reader.remote_name
    return out


def _below(reader: Reader, version: Version, path: bytes, out: Listing, *, recursive: bool) -> None:
    """The tracked paths in an ordinary folder."""
    for name, pointer in version.below(path):
        if isinstance(pointer, DvkError):
            out.failures.append(pointer)
        elif not (recursive and pointer.is_dir):
            out.entries.append(_whole(name, pointer))
        else:
            try:
                _tracked(reader, Target(name, b"", pointer, version.rev, version.commit), out, recursive=True)
            except DvkError as error:
                if error.kind == "interrupted":
                    raise
                out.failures.append(error)


def _whole(path: bytes, pointer: Pointer) -> Listed:
    files = pointer.files or 0 if pointer.is_dir else 1
    return Listed(path, pointer.kind, pointer.size, files, pointer.id, exec=pointer.exec, tracked=True)


def _tracked(reader: Reader, target: Target, out: Listing, *, recursive: bool) -> None:
    """A tracked file, or what a tracked folder holds."""
    if not target.pointer.is_dir:
        if target.inner:
            raise NotFound("a file is tracked under this name, so nothing lies in it", subject=show(target.path))
        out.entries.append(_whole(target.path, target.pointer))
        return
    prefix = target.full + b"/"
    if recursive:
        entries = reader.entries(target)
        names = [target.path + b"/" + name for name in entries.names]
        out.entries += [_entry(entries, i, name) for i, name in enumerate(names)]
        return
    start = target.inner + b"/" if target.inner else b""
    try:
        parts = list(_one_level(PageId(target.pointer.id), reader.repo.store.load_page, target.inner))
    except DataMissing:
        parts = [reader.from_remote(target)]
    found = list(_grouped(parts, start, prefix, target.full))
    if target.inner and not found:
        reader.entries(target)  # says that it is not there
    out.entries += found


def _one_level(root: PageId, load: Load, under: bytes) -> Iterator[Entries | PageRef]:
    """The leaves at and below `under`, or only their references where one lies in a single subfolder."""
    start = under + b"/" if under else b""
    refs = list(leaf_refs(ListKind.LISTING, root, load))
    following = {a.first: b.first for a, b in itertools.pairwise(refs)}
    for ref in leaves_under(refs, under):
        sub = _subfolder(ref.first, start)
        if sub and following.get(ref.first, b"").startswith(start + sub + b"/"):
            yield ref
            continue
        entries = load_leaf(ListKind.LISTING, ref, load)
        assert isinstance(entries, Entries)
        yield entries.under(under) if under else entries


def _subfolder(name: bytes, start: bytes) -> bytes:
    """The folder just below `start` that `name` lies in; empty when it lies in none."""
    if not name.startswith(start):
        return b""
    head, slash, _ = name[len(start) :].partition(b"/")
    return head if slash else b""


def _grouped(parts: Iterable[Entries | PageRef], start: bytes, prefix: bytes, itself: bytes) -> Iterator[Listed]:
    """Entries with everything in a subfolder taken together; `start` is what their names begin with."""
    folder, files, size = b"", 0, 0

    def closed() -> Iterator[Listed]:
        if folder:
            yield Listed(prefix + folder, "dir", size, files)

    for part in parts:
        rows = 1 if isinstance(part, PageRef) else len(part)
        i = 0
        while i < rows:
            name = part.first if isinstance(part, PageRef) else part.names[i]
            sub = _subfolder(name, start)
            if sub != folder:
                yield from closed()
                folder, files, size = sub, 0, 0
            if isinstance(part, PageRef):
                files, size, i = files + part.files, size + part.total_bytes, 1
            elif sub:
                _, high = part.names.under(start + sub)
                inside = part.slice(i, high)
                files, size, i = files + inside.files, size + inside.total_bytes, high
            else:
                yield _entry(part, i, prefix + name[len(start) :] if name.startswith(start) else itself)
                i += 1
    yield from closed()


def _entry(entries: Entries, i: int, path: bytes) -> Listed:
    kind = int(entries.kinds[i])
    if kind == Kind.LINK:
        number = int(np.count_nonzero(entries.kinds[:i] == Kind.LINK))
        return Listed(path, "link", int(entries.sizes[i]), 0, target=entries.targets[number])
    if kind == Kind.EMPTYDIR:
        return Listed(path, "dir", 0, 0)
    return Listed(path, "file", int(entries.sizes[i]), 1, entries.ids[i].tobytes(), exec=kind == Kind.EXEC)
