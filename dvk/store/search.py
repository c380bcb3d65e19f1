"""What a root consists of by the footers of all packs on a remote: complete and slow, for when its locator is no help.

>>> for part in search(remote, root):                                # doctest: +SKIP
...     part.entries, part.contents

Nothing of a remote has to be believed for it but that its packs are listed: the footers make the same index that the
local store has, and pages are found by their ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from msgspec import Struct, field

from dvk.backend.contract import KeyMissing
from dvk.errors import Corrupt, DataMissing, DvkError, FormatError, NewerFormat
from dvk.ids import PageId
from dvk.store.content import Content, StoreContent
from dvk.store.listing import Entries, Kind
from dvk.store.names import Names
from dvk.store.pack import RecipeRow
from dvk.store.pages import ListKind, leaf_refs, leaves_under, load_leaf, load_page
from dvk.store.root import FILE, Root
from dvk.store.store import Store, as_column


class NotWhole(Corrupt):
    """What a remote has of a root is damaged, and no other copy of it is there: the footers were read, too."""


class Part(Struct):
    """Some of a root: entries in order, and for each what it consists of (None: no data, or not known here)."""

    entries: Entries
    contents: list[Content | None]
    pages: list[tuple[PageId, bytes]] = field(default_factory=list)  #: proven pages worth keeping
    recipes: list[RecipeRow] = field(default_factory=list)


def file_as_entries(root: Root) -> Entries:
    """A file as a listing of one entry without a name."""
    return Entries(
        Names.of([b""]),
        np.array([Kind.FILE], np.uint8),
        np.array([root.size], np.int64),
        as_column([root.id]),
        Names.of([]),
    )


def search(remote: Store, root: Root, *, under: bytes = b"", why: DvkError | None = None) -> Iterator[Part]:
    """Everything of a root, or of the part at and below `under`, by the footers of all packs.

    Args:
        why: what following its locator ended in; named if that is all that is left to say.

    Raises:
        DataMissing: nothing there knows the id, or data of some files is gone. NotWhole: the same, and something that
            may have held it is damaged. NewerFormat: a newer dvk wrote the locator. What is there came before.
    """
    source = StoreContent(remote)
    pages: dict[PageId, bytes] = {}

    def load(name: PageId) -> bytes:
        data = pages[name] = remote.load_page(name)
        return data

    missing = 0
    try:
        remote.refresh()
        if root.kind == FILE:
            groups: Iterator[Entries] = iter([file_as_entries(root)])
        else:
            groups = _leaves(root, under, load)
        for entries in groups:
            sizes = np.where(entries.is_file, entries.sizes, 0)
            contents: list[Content | None] = [
                c if n else None for c, n in zip(source.contents(entries.ids, sizes), sizes.tolist(), strict=True)
            ]
            missing += sum(c is None and n > 0 for c, n in zip(contents, sizes.tolist(), strict=True))
            rows = [r for r in remote.find_recipes(entries.ids) if r is not None]
            for row in rows:
                _take_recipe(row, load)
            found, pages = pages, {}
            yield Part(entries, contents, list(found.items()), rows)
    except (DataMissing, KeyMissing) as error:
        raise _gone(remote, f"{root.text[:14]} is not on this remote", why) from error
    except NewerFormat:
        raise
    except FormatError as error:
        raise _gone(remote, f"the list of what {root.text[:14]} holds cannot be read", error) from error
    if missing:
        what = "its data" if root.kind == FILE else f"the data of {missing:,} of its files"
        raise _gone(remote, f"{what} is not on this remote", why)


def _gone(remote: Store, what: str, why: DvkError | None) -> DvkError:
    """The error for what was not found: named after the damage, if there is any that may have hidden it."""
    damage = why if isinstance(why, FormatError) else next(iter(remote.damaged), None)
    if damage is None:
        return DataMissing(what, subject=remote.name, hint="whoever has this version can `dvk push` it")
    found = f"{what}, and something there is damaged: {damage}"
    if isinstance(damage, NewerFormat):
        return NewerFormat(found, subject=remote.name, hint=damage.hint)
    hint = "whoever has this version can mend it with `dvk push --verify full`"
    return NotWhole(found, subject=remote.name, hint=hint)


def _take_recipe(row: RecipeRow, load: Callable[[PageId], bytes]) -> None:
    """Load all pages of a recipe."""
    try:
        for ref in leaf_refs(ListKind.RECIPE, PageId(row.root), load, total_bytes=row.size):
            load_leaf(ListKind.RECIPE, ref, load)
    except (DataMissing, FormatError):
        pass  # its pusher did not get to the end, or it is damaged; whether the data is there shows in the contents


def _leaves(root: Root, under: bytes, load: Callable[[PageId], bytes]) -> Iterator[Entries]:
    """The entries of a folder, leaf by leaf."""
    page = load_page(ListKind.LISTING, PageId(root.id), load)
    if (page.files, page.total_bytes) != (root.files, root.size):
        raise Corrupt("a folder is not what its pointer says", subject=root.text)
    refs = list(leaf_refs(ListKind.LISTING, PageId(root.id), load))
    follows = dict(zip([r.id for r in refs], [r.first for r in refs[1:]], strict=False))
    for ref in leaves_under(refs, under):
        entries = load_leaf(ListKind.LISTING, ref, load)
        assert isinstance(entries, Entries)
        if len(entries) and entries.names[len(entries) - 1] >= follows.get(ref.id, b"\xff" * 4096):
            raise Corrupt("the pages of a folder are not in order", subject=root.text)
        yield entries.under(under) if under else entries
