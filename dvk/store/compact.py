"""What roots on a remote need, proven, and one record over it in place of older ones.

A version of today relies on packs of many pushes, each named by the record of its push. When the versions that those
pushes sent are no longer wanted, their records still hold everything they ever sent. A compaction writes a record that
names just what the wanted roots use; then the old records can be retired, and packs that no record names are garbage.

What a root uses is read from its locator and proven: every page by its id, every chunk by the footer of a pack that is
kept. A locator that leads nowhere stops the compaction; it never makes data garbage.

>>> cover(remote, roots, needs(remote, roots), pool=pool, writer="dvk gc", project="")       # doctest: +SKIP
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from dvk.backend.contract import KeyMissing
from dvk.errors import DvkError, FormatError, NotOurs, Unsafe
from dvk.ids import RecordId
from dvk.store.content import Content
from dvk.store.known import KnownChunks
from dvk.store.locator import MAX_BYTES, Locator, Ref, format_locator, locator_key, parse_locator
from dvk.store.names import U8, distinct
from dvk.store.pack import PackKind, pack_key
from dvk.store.promise import promise
from dvk.store.record import Record
from dvk.store.root import FILE, FOLDER, Root
from dvk.store.section_reader import SectionReader
from dvk.store.store import Store
from dvk.store.wholeness import State, Wholeness

_SECTIONS_AT_ONCE = 16


class Needs(Struct, frozen=True):
    """Pack keys that roots use, and their locators as they were read."""

    packs: frozenset[str]
    locators: tuple[Locator, ...]


def needs(remote: Store, roots: Sequence[str]) -> Needs:
    """Everything that readers of `roots` (as records write them) open.

    Raises:
        Unsafe: something of a root is not there, damaged, or not where its locator says.
    """

    def stop(text: str, error: DvkError) -> None:
        raise _astray(remote, text, error) from error

    return _needs(remote, roots, stop)


def needs_of_whole(remote: Store, roots: Sequence[str]) -> tuple[Needs, set[str]]:
    """As `needs`, for those roots that are whole; and those that are not."""
    lost: set[str] = set()
    return _needs(remote, roots, lambda text, _: lost.add(text)), lost


def needs_somehow(remote: Store, roots: Sequence[str], known: Mapping[str, Root]) -> tuple[frozenset[str], list[str]]:
    """The pack keys that roots use, and those of the roots that only the footers of all packs still lead to.

    What such a root uses of page packs is not asked: all of them count. Its locator has to be written again before
    anything goes that it needs.

    Args:
        known: what is known of roots besides, for locators that are gone.

    Raises:
        Unsafe: something of a root is lost, or nobody knows how large it is.
    """
    found, astray = needs_of_whole(remote, roots)
    packs = set(found.packs)
    if astray:
        packs.update(item.key for item in remote.backend.list(f"{PackKind.PAGES.prefix}/"))
        by_footers = Wholeness(Store(remote.backend))
        for text in sorted(astray):
            root = known[text] if text in known else root_of_text(remote, text)
            if by_footers.look(root).state is not State.WHOLE:
                needs(remote, [text])  # says what is wrong
                raise _astray(remote, text, Unsafe("it is not whole"))
        packs.update(pack_key(PackKind.DATA, name) for name in by_footers.used)
    return frozenset(packs), sorted(astray)


def _needs(remote: Store, roots: Sequence[str], on_loss: Callable[[str, DvkError], None]) -> Needs:
    packs: set[str] = set()
    known = KnownChunks()
    added: set[bytes] = set()
    kept: list[Locator] = []
    with SectionReader(remote) as reader:
        for text in roots:
            mine: set[str] = set()
            try:
                found = _locator(remote, text)
                root = Root(found.kind, found.id, found.size, found.files)
                for data, chunks, pages in _walk(reader, root, found):
                    mine.update(pack_key(PackKind.PAGES, p) for p in pages)
                    mine.update(pack_key(PackKind.DATA, p) for p in data)
                    for name in data - added:
                        known.add_pack(name, remote.footer(name, PackKind.DATA))
                        added.add(name)
                    if len(chunks) and not known.holds(chunks).all():
                        raise Unsafe("a chunk is not in the pack that its locator names", subject=text)
            except (KeyMissing, FormatError, Unsafe) as error:
                on_loss(text, error)
                continue
            packs |= mine
            kept.append(found)
    return Needs(frozenset(packs), tuple(kept))


def chunks_of_root(remote: Store, text: str) -> tuple[set[str], U8]:
    """The data packs that a root uses, as keys, and its chunks (uint8[n, 32], some more than once).

    Raises:
        Unsafe: its locator leads nowhere.
    """
    packs: set[str] = set()
    ids: list[U8] = [np.zeros((0, 32), np.uint8)]
    try:
        with SectionReader(remote) as reader:
            found = _locator(remote, text)
            root = Root(found.kind, found.id, found.size, found.files)
            for data, chunks, _ in _walk(reader, root, found):
                packs.update(pack_key(PackKind.DATA, p) for p in data)
                ids.append(chunks)
    except (KeyMissing, FormatError) as error:
        raise _astray(remote, text, error) from error
    return packs, np.concatenate(ids)


def root_of_text(remote: Store, text: str) -> Root:
    """A root as its locator has it. Raises Unsafe."""
    try:
        found = _locator(remote, text)
    except (KeyMissing, FormatError) as error:
        raise _astray(remote, text, error) from error
    return Root(found.kind, found.id, found.size, found.files)


def _astray(remote: Store, text: str, error: DvkError) -> Unsafe:
    return Unsafe(
        f"a version that is wanted cannot be followed to its data ({error.message}); nothing was deleted",
        subject=f"{remote.name}: {text[:14]}",
        hint="`dvk push --verify full` from a clone that holds it mends its locator and what is lost",
    )


def _locator(remote: Store, text: str) -> Locator:
    kind, name = FILE if text[0] == "f" else FOLDER, bytes.fromhex(text[2:])
    key = locator_key(kind, name)
    data = remote.backend.get(key, max_bytes=MAX_BYTES)
    return parse_locator(data, kind=kind, wanted=name, subject=f"{remote.name}/{key}")


def _walk(reader: SectionReader, root: Root, found: Locator) -> Iterator[tuple[set[bytes], U8, set[bytes]]]:
    """(data packs, chunk ids uint8[n, 32], page packs) of a few sections at a time."""
    refs = reader.leaf_refs(root, found)
    for start in range(0, len(refs), _SECTIONS_AT_ONCE):
        which = range(start, min(start + _SECTIONS_AT_ONCE, len(refs)))
        outside: list[tuple[Root, Ref]] = []
        for i, section in zip(which, reader.iter_sections(found, which), strict=True):
            if root.kind == FILE:
                contents: list[Content | Ref | None] = [
                    Content(reader.recipe_leaf(root, refs[i].id, section), section.placed.placement)
                ]
            else:
                entries, contents, _ = reader.leaf_contents(root, refs[i].id, section)
                sizes = entries.sizes.tolist()
                outside += [
                    (Root(FILE, entries.ids[j].tobytes(), sizes[j]), c)
                    for j, c in enumerate(contents)
                    if isinstance(c, Ref)
                ]
            files = [c for c in contents if isinstance(c, Content)]
            blocks = section.placed.placement.blocks
            used = {blocks.packs[p] for p in set(blocks.pack[distinct(section.placed.placement.block)].tolist())}
            ids = [c.chunks.ids for c in files]
            pages = {found.sections[i].pack}
            yield used, np.concatenate(ids) if ids else np.zeros((0, 32), np.uint8), pages
        for (file, ref), inner in zip(outside, reader.nested(outside), strict=True):
            yield set(), np.zeros((0, 32), np.uint8), {ref.pack}
            yield from _walk(reader, file, inner)


def cover(remote: Store, roots: Sequence[str], found: Needs, *, pool: Executor, writer: str, project: str) -> RecordId:
    """Write and confirm one record over `roots`, and put their locators again with its name; its id.

    Args:
        found: what the roots use (`needs`).

    Raises:
        Conflict: something of it is being collected; nothing was promised.
    """
    store = remote.describe_again()
    if store is None:
        raise NotOurs("there is no dvk store here", subject=remote.name)
    record = Record(
        store=store.store,
        roots=tuple(sorted(set(roots))),
        packs=(),
        reused=tuple(sorted(found.packs)),
        bases=(),
        time=int(time.time()),
        writer=writer,
        nonce=secrets.token_hex(16),
        project=project,
    )

    def put_locators(rid: RecordId) -> None:
        def put(one: Locator) -> None:
            remote.backend.put(locator_key(one.kind, one.id), [format_locator(replace(one, record=rid))])

        list(pool.map(put, found.locators))

    return promise(remote, record, store=store, pool=pool, sizes={}, covered={}, put_locators=put_locators)
