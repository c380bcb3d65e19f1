"""`dvk ls`: what is tracked, and what tracked folders hold, in the work tree or at a revision.

One level of a folder of a million files costs the pages around its borders: a page that lies in one subfolder as a
whole is counted by what its parent says of it, and never read. Works without Git, and in a clone that has no data:
pages come from the remote then.
"""

from __future__ import annotations

from msgspec import Struct, field

from dvk.commands.reader import Reader
from dvk.commands.repo import Repo
from dvk.commands.spec import Spec, Target, Version, not_tracked, open_version, parse_spec, place
from dvk.errors import DataMissing, DvkError, NotFound
from dvk.events import OnEvent, ignore
from dvk.ids import PageId
from dvk.store.folder import Folder, Item, entry_item, group
from dvk.store.listing import Kind
from dvk.store.names import show
from dvk.workspace.pointer import Pointer


class Listed(Struct, frozen=True):
    """One line of a listing."""

    path: bytes  #: from the top of the work tree
    kind: str  #: "file", "dir" or "link"
    size: int  #: bytes; of a folder all its files together
    files: int  #: 1 for a file, 0 for a link
    id: bytes | None = None  #: None for links, and for folders inside tracked ones, which have no id of their own
    exec: bool = False
    target: bytes | None = None  #: of a link
    tracked: bool = False  #: it has a pointer of its own


class Listing(Struct):
    """The answer."""

    rev: str | None
    entries: list[Listed] = field(default_factory=list)
    failures: list[DvkError] = field(default_factory=list)  #: pointers that cannot be read
    remote: str = ""  #: where pages were read from that are not here


def ls(
    repo: Repo,
    spec: Spec | str | bytes = "",
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
    if isinstance(spec, Spec):
        parsed = spec if spec.text else None
    else:
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
    if recursive:
        entries = reader.entries(target)
        out.entries += [_listed(entry_item(entries, i), target.path) for i in range(len(entries))]
        return
    try:
        found = list(Folder(PageId(target.pointer.id), reader.repo.store.load_page).children(target.inner))
    except DataMissing:
        start = target.inner + b"/" if target.inner else b""
        found = list(group(iter([reader.from_remote(target)]), start))
    if target.inner and not found:
        reader.entries(target)  # says that it is not there
    out.entries += [_listed(item, target.path) for item in found]


def _listed(item: Item, owner: bytes) -> Listed:
    path = owner + b"/" + item.name
    if item.kind == Kind.LINK:
        return Listed(path, "link", item.size, 0, target=item.target)
    kind = "dir" if item.kind in (None, Kind.EMPTYDIR) else "file"
    return Listed(path, kind, item.size, item.files, item.id, exec=item.kind == Kind.EXEC)
