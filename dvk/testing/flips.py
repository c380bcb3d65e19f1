"""Every bit of every kind of object turned over once, and every length: what is noticed, and what means nothing.

    python -m dvk.testing.flips                      # all bits, some minutes; prints docs/reliability-damage.md
    python -m dvk.testing.flips --every 17           # a sample, as CI runs it

A small store, a remote and a work tree's state are made; of each kind of object one is taken, and looked at with the
very functions that `dvk verify --data` and the readers use, once for each bit that is turned over and each length that
is left. Noticed is what raises, or is reported as damage. What is not noticed must mean nothing: the table says which
fields these are and why. Ends with 1 when a bit is neither.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from blake3 import blake3
from msgspec.structs import replace

from dvk.backend.contract import Backend
from dvk.backend.memory import MemoryBackend
from dvk.commands import versions
from dvk.commands.acknowledged import Acknowledged
from dvk.commands.placed import Placed
from dvk.errors import DvkError
from dvk.store.checked import CheckedPacks
from dvk.store.condemned import condemned_key, format_condemned
from dvk.store.descriptor import parse_descriptor
from dvk.store.examine import Level, examine_pack, examine_store
from dvk.store.examine_index import IndexCheck
from dvk.store.examine_records import examine_records
from dvk.store.journal import Journal
from dvk.store.listing import Entries, Kind
from dvk.store.locator import parse_locator
from dvk.store.pack import PackKind, RecipeRow
from dvk.store.pages import Chunks, ListKind, page_id, parse_page
from dvk.store.pagewriter import ListWriter, write_listing
from dvk.store.push import Version, push
from dvk.store.record import format_mark
from dvk.store.root import FILE, FOLDER, Root
from dvk.store.roots import ConfirmedRoots
from dvk.store.store import Store, as_column
from dvk.store.writer import Writer
from dvk.workspace.pointer import Pointer, format_pointer, parse
from dvk.workspace.selection import Selected, Selection
from dvk.workspace.statcache import StatCache, cache_file, is_damaged
from dvk.workspace.stats import Stats

_PROFILE = "cdc-64k"
_FOLDER = b"data/images"

Look = Callable[[bytes], str]  #: what is noticed about changed bytes; empty for nothing
Means = Callable[[bytes], str]  #: why bytes that nobody noticed mean the same; empty when they do not


@dataclass(frozen=True, slots=True)
class Case:
    """One object, and who looks at it."""

    kind: str
    data: bytes
    look: Look
    meaningless: Means = lambda _data: ""


@dataclass(slots=True)
class Row:
    """What came of one object."""

    kind: str
    size: int
    flipped: int = 0
    flips_noticed: int = 0
    cut: int = 0
    cuts_noticed: int = 0
    meaningless: Counter[str] = field(default_factory=Counter)
    unnoticed: list[str] = field(default_factory=list)  #: where, for those that do mean something


def run(case: Case, *, every: int = 1, start: int = 0) -> Row:
    """Change an object in every way, or in one of `every`."""
    if problem := case.look(case.data):
        raise AssertionError(f"{case.kind} is found damaged as it is: {problem}")
    out = Row(case.kind, len(case.data))
    for bit in range(start % every, len(case.data) * 8, every):
        data = bytearray(case.data)
        data[bit // 8] ^= 1 << bit % 8
        out.flipped += 1
        out.flips_noticed += _one(case, bytes(data), f"bit {bit % 8} of byte {bit // 8}", out)
    lengths = [*range(start % every, len(case.data), every)]
    longer = [case.data + b"\0", case.data + b"\n", case.data + case.data, b""]
    for data_ in [*(case.data[:n] for n in lengths), *longer]:
        out.cut += 1
        out.cuts_noticed += _one(case, data_, f"{len(data_)} of {len(case.data)} bytes", out)
    return out


def _one(case: Case, data: bytes, where: str, out: Row) -> bool:
    if case.look(data):
        return True
    if why := case.meaningless(data):
        out.meaningless[why] += 1
    else:
        out.unnoticed.append(where)
    return False


def noticed(look: Callable[[], object]) -> str:
    """What an error says; empty where there is none."""
    try:
        look()
    except DvkError as error:
        return error.message or error.kind
    return ""


# ---------------------------------------------------------------- the objects


def cases(folder: str) -> Iterator[Case]:
    """One of each kind. `folder`: an empty one, for state that lies in files."""
    local, remote, roots = _world(folder)
    yield from _of_store(local, "local")
    yield from _of_store(remote, "remote")
    yield from _of_remote(remote, roots)
    yield from _pages(local, roots)
    yield from _state(folder)


def _world(folder: str) -> tuple[MemoryBackend, MemoryBackend, list[Root]]:
    """A local store with a folder and a file of several chunks, pushed to a remote; a damage note; a condemned list."""
    local, remote = MemoryBackend("local"), MemoryBackend("remote")
    store = Store(local)
    pieces = [blake3(b"chunk %d" % i).digest(70 + i) for i in range(3)]
    ids, lengths = [blake3(p).digest() for p in pieces], [len(p) for p in pieces]
    text = b"a line of text that shrinks, " * 9
    with Writer(store) as writer:
        whole = b"".join(pieces)
        writer.add_chunks([*ids, blake3(text).digest()], [*lengths, len(text)], memoryview(whole + text))
        recipe = ListWriter(ListKind.RECIPE, writer.add_page)
        recipe.add(Chunks(as_column(ids), np.array(lengths, np.uint32)))
        file = Root(FILE, blake3(whole).digest(), len(whole))
        writer.add_recipe(RecipeRow(file.id, recipe.finish().id, file.size, _PROFILE))
        listed = [
            (b"a/one", Kind.FILE, len(text), blake3(text).digest(), b""),
            (b"a/two", Kind.EXEC, file.size, file.id, b""),
            (b"link", Kind.LINK, 5, bytes(32), b"a/one"),
        ]
        ref = write_listing(Entries.of(listed), writer.add_page)
        writer.flush()
    roots = [file, Root(FOLDER, ref.id, ref.total_bytes, ref.files)]
    push(store, Store(remote), [Version(r) for r in roots], os.path.join(folder, "remotes"))
    name, kind = next((n, k) for n, k in store.list_packs().items() if k is PackKind.DATA)
    store.note_damage(name, store.footer(name, kind), np.array([0], np.int64), keep=True)
    found = Store(remote).describe()
    assert found is not None
    packs = [item.key for item in remote.list("p/")]
    condemned = format_condemned(packs, store=found.store)
    remote.put(condemned_key(condemned), [condemned])
    (rid,) = {item.key[2:66] for item in remote.list("j/")}
    remote.put(f"j/{rid}.e", [format_mark(bytes.fromhex(rid))])
    return local, remote, roots


def _changed(backend: MemoryBackend, key: str, data: bytes) -> MemoryBackend:
    """The same store with other bytes under one key."""
    out = MemoryBackend(backend.name)
    for item in backend.list(""):
        out.put(item.key, [data if item.key == key else backend.get(item.key, max_bytes=1 << 20)])
    return out


def _keys(backend: Backend, prefix: str) -> list[str]:
    return sorted(item.key for item in backend.list(prefix))


def _get(backend: Backend, key: str) -> bytes:
    return backend.get(key, max_bytes=1 << 20)


def _of_store(backend: MemoryBackend, where: str) -> Iterator[Case]:
    for kind, word in ((PackKind.DATA, "data"), (PackKind.PAGES, "page")):
        key = _keys(backend, f"{kind.prefix}/")[0]
        name = bytes.fromhex(key.rsplit("/", 1)[-1])

        def pack(data: bytes, key: str = key, kind: PackKind = kind, name: bytes = name) -> str:
            one = MemoryBackend()
            one.put(key, [data])
            found = examine_pack(Store(one), kind, name, len(data), Level.DATA)
            return found.error.message if found.error is not None else ""

        yield Case(f"{word} pack, {where}", _get(backend, key), pack)
    for key in _keys(backend, "i/"):

        def index(data: bytes, key: str = key) -> str:
            one = MemoryBackend()
            one.put(key, [data])
            return "; ".join(d.error.message for d in IndexCheck(Store(one)).damage)

        yield Case("damage note" if "bad" in key else "index segment", _get(backend, key), index)


def _of_remote(backend: MemoryBackend, roots: Sequence[Root]) -> Iterator[Case]:
    packs = {*_keys(backend, "p/"), *_keys(backend, "m/")}
    pool = ThreadPoolExecutor(1)

    def everything(key: str) -> Look:
        def look(data: bytes) -> str:
            store = Store(_changed(backend, key, data))
            found = examine_store(store)
            return "; ".join(d.error.message for d in found or examine_records(store, pool, packs=packs).damage)

        return look

    yield Case("dvk.json of a remote", _get(backend, "dvk.json"), everything("dvk.json"))

    def local_json(data: bytes) -> str:
        one = MemoryBackend()
        one.put("dvk.json", [data])
        return "; ".join(d.error.message for d in examine_store(Store(one)))

    known = parse_descriptor(_get(backend, "dvk.json"), subject="")

    def other_store(data: bytes) -> str:
        same = replace(parse_descriptor(data, subject=""), store=known.store) == known
        return "`store`: the id of a local store is compared with nothing" if same else ""

    yield Case(
        "dvk.json of a local store",
        _get(backend, "dvk.json"),
        local_json,
        other_store,
    )
    words = {"": "record", ".ok": "confirmation", ".e": "mark of a record given up"}
    for key in _keys(backend, "j/"):
        yield Case(words[key[66:]], _get(backend, key), everything(key))
    for key in _keys(backend, "g/"):
        yield Case("condemned list", _get(backend, key), everything(key))
    for root in roots:
        word = "file" if root.kind == FILE else "folder"
        key = f"l/{root.text[0]}/{root.id.hex()[:2]}/{root.id.hex()}"

        def locator(data: bytes, root: Root = root) -> str:
            return noticed(lambda: parse_locator(data, kind=root.kind, wanted=root.id, subject=""))

        yield Case(f"locator of a {word}", _get(backend, key), locator)


def _pages(backend: MemoryBackend, roots: Sequence[Root]) -> Iterator[Case]:
    store = Store(backend)
    row = store.find_recipes(as_column([roots[0].id]))[0]
    assert row is not None
    for kind, name in ((ListKind.RECIPE, row.root), (ListKind.LISTING, roots[1].id)):
        from_pack = store.load_pages([name])[name]  # type: ignore[list-item, index]

        def page(data: bytes, kind: ListKind = kind, name: bytes = name) -> str:
            if page_id(kind, data) != name:
                return "a page fails its hash"
            return noticed(lambda: parse_page(data, kind, subject=""))

        yield Case(f"{kind.name.lower()} page", from_pack, page)


# ---------------------------------------------------------------- state in files


def _state(folder: str) -> Iterator[Case]:
    place = Path(folder)
    state = os.fsencode(folder)

    def replaced(path: Path, data: bytes) -> None:
        path.write_bytes(data)

    # The stat cache.
    n = 2
    numbers = np.arange(n, dtype=np.int64) + 10**9
    stats = Stats(numbers, numbers, numbers, numbers, 1)
    entries = Entries.of([(b"x", Kind.FILE, 5, b"1" * 32, b""), (b"y", Kind.FILE, 6, b"2" * 32, b"")])
    cache = StatCache(entries.names, entries.kinds, stats, entries.ids, np.ones(n, np.bool_), bytes(32), b"boot")
    assert cache.save(state, _FOLDER)
    path = Path(os.fsdecode(cache_file(state, _FOLDER)))

    def stat_cache(data: bytes) -> str:
        replaced(path, data)
        return "damaged" if is_damaged(state, _FOLDER) else ""

    yield Case("stat cache", path.read_bytes(), stat_cache)

    # The selection.
    Selection({_FOLDER: Selected((b"caf\xc3\xa9", b"val")), b"m\xff": Selected(None)}).save(state)
    chosen = Selection.load(state)
    selection_path = place / "selection.json"

    def selection(data: bytes) -> str:
        replaced(selection_path, data)
        return noticed(lambda: Selection.load(state))

    def same_selection(data: bytes) -> str:
        replaced(selection_path, data)
        return "another spelling of the same JSON" if Selection.load(state) == chosen else ""

    yield Case("selection", selection_path.read_bytes(), selection, same_selection)

    # Pointers.
    for pointer in (
        Pointer("file", blake3(b"file").digest(), 1234567, exec=True, source=(("url", "https://example.org/x"),)),
        Pointer("dir", blake3(b"dir").digest(), 1234567, files=12),
    ):
        text = format_pointer(pointer)

        def point(data: bytes, pointer: Pointer = pointer) -> str:
            try:
                found = parse(data, subject="")
            except DvkError as error:
                return error.message
            same = (found.kind, found.id, found.size, found.files) == (
                pointer.kind,
                pointer.id,
                pointer.size,
                pointer.files,
            )
            return "" if same else "it names a version that nobody has"  # `verify` says so: test_verify

        yield Case(
            f"pointer of a {'folder' if pointer.is_dir else 'file'}",
            text,
            point,
            lambda _data: "the text of a `source` line, for people; `git diff` shows it",
        )

    # History, as it is remembered.
    head = "a" * 40
    known = [versions.Named(b"t.csv", Root(FILE, b"\x07" * 32, 99), head)]
    history_path = place / "history.json"
    versions.save_history(os.fsencode(history_path), head, known)

    def history(data: bytes) -> str:
        replaced(history_path, data)
        return "read from Git again" if versions.load_history(os.fsencode(history_path), head) is None else ""

    def same_history(data: bytes) -> str:
        replaced(history_path, data)
        found = versions.load_history(os.fsencode(history_path), head)
        return "another spelling of the same JSON" if found == known else ""

    yield Case("history cache", history_path.read_bytes(), history, same_history)

    # The journal of a push.
    local, _, _ = _world(os.path.join(folder, "again"))
    key = _keys(local, "p/")[0]
    data = _get(local, key)
    store = Store(local)
    name = bytes.fromhex(key.rsplit("/", 1)[-1])
    footer_at = int.from_bytes(data[-48:-40], "little")
    journal = Journal(folder, "0" * 32)
    journal.add(name, data[footer_at:-64], data[-64:])
    entry = next((place / ("0" * 32) / "sent").iterdir())

    def sent(data: bytes) -> str:
        replaced(entry, data)
        return "" if list(journal.read()) else "counts as not sent"

    yield Case("journal of a push", entry.read_bytes(), sent)
    store.close()

    # When packs were read.
    checked = CheckedPacks(str(place / "checked"))
    checked.update([name], 1_790_000_000, there=[name])

    def times(data: bytes) -> str:
        replaced(place / "checked", data)
        return "" if checked.read() else "read again"

    def same_times(data: bytes) -> str:
        replaced(place / "checked", data)
        return "a newline at the end" if checked.read() == {name: 1_790_000_000} else ""

    yield Case("checked packs", (place / "checked").read_bytes(), times, same_times)
    yield from _hints(place)


def _hints(place: Path) -> Iterator[Case]:
    """State that is only a hint: it may say anything, and nothing is lost or wrong for it."""
    confirmed = ConfirmedRoots(str(place), "1" * 32)
    root = f"f:{'ab' * 32}"
    confirmed.add({root: bytes(32)})
    path = place / ("1" * 32) / "confirmed"

    def roots(data: bytes) -> str:
        path.write_bytes(data)
        return "" if confirmed.read() else "asked for again"

    yield Case(
        "confirmed roots",
        path.read_bytes(),
        roots,
        lambda _data: "a hint that `push` asks the remote about; one bit makes no other version of it",
    )
    acknowledged = Acknowledged(os.fsencode(place))
    acknowledged.add([root])

    def added(data: bytes) -> str:
        (place / "acknowledged").write_bytes(data)
        return "" if acknowledged.read() == {root} else "no line"

    yield Case(
        "acknowledged versions",
        (place / "acknowledged").read_bytes(),
        added,
        lambda _data: "an empty line, or the end of the last one",
    )
    placed = Placed(os.fsencode(place))
    placed.update({b"t.csv": Pointer("file", b"\x05" * 32, 77)})
    placed_path = place / "placed.json"

    def where(data: bytes) -> str:
        placed_path.write_bytes(data)
        try:
            json.loads(data)
        except ValueError:
            return "damaged"
        return "" if placed.read() else "forgotten: nothing is taken away"

    yield Case(
        "what was placed",
        placed_path.read_bytes(),
        where,
        lambda _data: "it decides only whether a file that the store holds, as it is, is taken away",
    )


# ---------------------------------------------------------------- the command


def run_all(*, every: int = 1, start: int = 0) -> list[Row]:
    """All kinds."""
    with tempfile.TemporaryDirectory() as folder:
        return [run(case, every=every, start=start) for case in cases(folder)]


def markdown(rows: Sequence[Row]) -> str:
    """docs/reliability-damage.md."""
    lines = "\n".join(
        f"| {r.kind} | {r.size:,} | {r.flips_noticed:,} of {r.flipped:,} | {r.cuts_noticed:,} of {r.cut:,} "
        f"| {'; '.join(f'{why} ({count:,})' for why, count in sorted(r.meaningless.items()))} |"
        for r in rows
    )
    bits, cuts = sum(r.flipped for r in rows), sum(r.cut for r in rows)
    return f"""# Damage to single objects

<!-- Generated by `python -m dvk.testing.flips`. -->

Of one object of each kind every bit was turned over once, and it was cut to every length, made longer by a byte, and
doubled: {bits:,} flips and {cuts:,} lengths. *Noticed* is what `dvk verify --data` reports or a reader refuses. The
last column is the rest, with the reason why it means nothing; a bit that is neither fails the run. Sizes vary a little
from run to run.

| object | bytes | flips noticed | lengths noticed | what means nothing |
|---|---:|---:|---:|---|
{lines}

In all kinds that are named or proven by a hash, and in the index and the locators, every bit counts.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m dvk.testing.flips", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--every", type=int, default=1, help="only one bit and one length of so many")
    parser.add_argument("--start", type=int, default=0, help="the first one")
    options = parser.parse_args(arguments)
    rows = run_all(every=options.every, start=options.start)
    sys.stdout.write(markdown(rows))
    for row in rows:
        for where in row.unnoticed:
            sys.stderr.write(f"unnoticed: {row.kind}, {where}\n")
    return 1 if any(r.unnoticed for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
