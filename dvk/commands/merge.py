"""Three versions of a pointer become one: what one side changed is taken, what both changed is a named conflict.

    merged = merge_pointers(store, base, ours, theirs)
    merged.pointer                 # None when something could not be decided
    merged.conflicts               # of a folder: which files, and why

`merge_driver` is what Git runs (`merge=dvk` in .gitattributes, the command in the configuration of the clone). It reads
lists of folders from the local store alone, never data and never the network. A conflict leaves Git's index as Git has
it, with all three versions, and `dvk resolve` chooses among them. The work tree gets both versions between conflict
marks, as from Git itself: a pointer that silently was one side's would go into the next `git commit -a`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from msgspec import Struct, field

from dvk.commands.merge_folder import EntryConflict, Side, merge_folders, told
from dvk.commands.repo import Repo
from dvk.errors import DataMissing, DvkError, FormatError
from dvk.ids import PageId
from dvk.store.names import show
from dvk.store.pages import Load
from dvk.store.store import Store
from dvk.store.writer import Writer
from dvk.workspace.durable import read_small
from dvk.workspace.pointer import MAX_BYTES, SUFFIX, Pointer, format_pointer, parse

_MAX_TOLD = 10


class Merged(Struct):
    """What came out. `pointer` is None where a side has to be chosen."""

    pointer: Pointer | None
    why: str = ""  #: of a conflict, in words
    conflicts: list[EntryConflict] = field(default_factory=list)  #: of a folder
    taken: int = 0  #: names in a folder that are now as theirs has them


def merge_pointers(
    store: Store,
    base: Pointer | None,
    ours: Pointer,
    theirs: Pointer,
    *,
    favour: Side | None = None,
    load: Load | None = None,
) -> Merged:
    """Merge two versions that come from `base` (None: both sides added the path).

    Args:
        favour: of files in a folder that both sides changed, take this side's.
        load: where pages of lists are read; by default in `store`, which takes the new ones in any case.

    Raises:
        DataMissing: pages of a folder's list are not there.
    """
    if theirs in (ours, base):
        return Merged(ours)
    if ours == base:
        return Merged(theirs)
    if _content(ours) == _content(theirs):
        return _same_content(base, ours, theirs)
    if base is not None and _content(ours) == _content(base):
        return Merged(_with_exec(theirs, base, ours))
    if base is not None and _content(theirs) == _content(base):
        return Merged(_with_exec(ours, base, theirs))
    if ours.kind != theirs.kind:
        sides = ("a folder", "a file") if ours.is_dir else ("a file", "a folder")
        return Merged(None, f"it is {sides[0]} on our side and {sides[1]} on theirs")
    if not ours.is_dir:
        return Merged(None, "both sides changed it" if base is not None else "both sides added it")
    start = PageId(base.id) if base is not None and base.is_dir else None
    with Writer(store) as writer:
        done = merge_folders(
            start, PageId(ours.id), PageId(theirs.id), load=load or store.load_page, emit=writer.add_page, favour=favour
        )
        if done.root is None:
            return Merged(None, "both sides changed some of its files", done.conflicts)
        writer.flush()
    source = _source_of_both(base, ours, theirs)
    root = done.root
    return Merged(Pointer("dir", bytes(root.id), root.total_bytes, root.files, source=source), taken=done.taken)


def _source_of_both(base: Pointer | None, ours: Pointer, theirs: Pointer) -> tuple[tuple[str, str], ...]:
    """Where a folder came from that has files of both sides: nowhere, where each side says something else of it."""
    if base is not None and theirs.source == base.source:
        return ours.source
    if base is not None and ours.source == base.source:
        return theirs.source
    return ours.source if ours.source == theirs.source else ()


def _content(pointer: Pointer) -> tuple[str, bytes, int, int | None]:
    return pointer.kind, pointer.id, pointer.size, pointer.files


def _same_content(base: Pointer | None, ours: Pointer, theirs: Pointer) -> Merged:
    """The same data on both sides, which differ in the executable bit or in where it came from."""
    before = base or Pointer(ours.kind, ours.id, ours.size, ours.files)
    if theirs.source not in (ours.source, before.source) and ours.source != before.source:
        return Merged(None, "both sides have the same data, and differ in where it came from")
    executable = theirs.exec if ours.exec == before.exec else ours.exec
    source = theirs.source if ours.source == before.source else ours.source
    return Merged(Pointer(ours.kind, ours.id, ours.size, ours.files, executable, source))


def _with_exec(new: Pointer, base: Pointer, other: Pointer) -> Pointer:
    """`new`, whose data is taken, with the executable bit of `other` where only that side changed it."""
    if new.is_dir or other.is_dir or base.is_dir:
        return new
    executable = other.exec if new.exec == base.exec else new.exec
    return Pointer(new.kind, new.id, new.size, new.files, executable, new.source)


# ---------------------------------------------------------------- what Git runs


class DriverResult(Struct):
    """How a merge that Git asked for went."""

    path: bytes
    merged: bool
    told: list[str] = field(default_factory=list)  #: of a conflict, with what to do


def merge_driver(repo: Repo, base: str, ours: str, theirs: str, path: str) -> DriverResult:
    """Merge the pointers in three files, as Git hands them to a merge driver; the result replaces `ours`.

    Args:
        path: of the pointer, from the top.

    Raises:
        StorageError: a file cannot be read or written; Git has to take it for a conflict.
    """
    name = os.fsencode(path).removesuffix(SUFFIX)
    texts = [_read(os.fsencode(file), path) for file in (base, ours, theirs)]
    if texts[1] == texts[2]:
        return DriverResult(name, True)
    merged = Merged(None)
    try:
        before = parse(texts[0], subject=f"the common ancestor of {path}") if texts[0] else None
        a, b = parse(texts[1], subject=f"our {path}"), parse(texts[2], subject=f"their {path}")
        with repo.writing():
            merged = merge_pointers(repo.store, before, a, b)
        lines = [*explain(name, merged, a, b), *_ways_out(name, merged)]
    except DataMissing as error:
        merged.why = f"the lists of its files are not all in this clone ({error.message})"
        lines = [f"{show(name)}: {merged.why}", f"`dvk resolve {show(name)} --merge` fetches them and merges"]
    except DvkError as error:
        lines = [str(error), f"`dvk resolve {show(name)} --ours` (or --theirs) chooses a whole version"]
    if merged.pointer is not None:
        _write(os.fsencode(ours), format_pointer(merged.pointer))
        return DriverResult(name, True)
    marked = b"<<<<<<< ours\n" + texts[1] + b"=======\n" + texts[2] + b">>>>>>> theirs\n"
    _write(os.fsencode(ours), marked)
    return DriverResult(name, False, lines)


def explain(path: bytes, merged: Merged, ours: Pointer, theirs: Pointer) -> Iterator[str]:
    """A conflict in words, with both versions named."""
    name = show(path)
    yield f"{name}: {merged.why}: ours {version(ours)}, theirs {version(theirs)}"
    for conflict in merged.conflicts[:_MAX_TOLD]:
        yield f"    {told(conflict, path)}"
    if len(merged.conflicts) > _MAX_TOLD:
        yield f"    and {len(merged.conflicts) - _MAX_TOLD:,} more"


def _ways_out(path: bytes, merged: Merged) -> Iterator[str]:
    name = show(path)
    if merged.conflicts:
        yield f"`dvk resolve {name} --merge --ours` (or --theirs) merges, with that side's files where both changed"
    yield f"`dvk resolve {name} --ours` (or --theirs) takes one whole version"


def version(pointer: Pointer) -> str:
    """A version as people tell one from another."""
    files = f", {pointer.files:,} files" if pointer.files is not None else ""
    return f"{pointer.id.hex()[:12]} ({pointer.size:,} bytes{files})"


def _read(file: bytes, path: str) -> bytes:
    data = read_small(None, os.path.abspath(file), max_bytes=MAX_BYTES, subject=path)
    if data is None:
        raise FormatError("a file that Git should have made for the merge is not there", subject=path)
    return data


def _write(file: bytes, data: bytes) -> None:
    # Git's own temporary file, which it reads when this program has ended.
    with open(file, "wb") as out:
        out.write(data)
