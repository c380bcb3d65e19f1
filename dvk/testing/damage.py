"""Damage of known place and kind, many times over: does `verify` name exactly what is affected, and `repair` mend it?

    python -m dvk.testing.damage --trials 1000 --seed 1        # some minutes
    python -m dvk.testing.damage --trials 20                   # a sample

A repository with several versions of a file and of folders, a remote with several pushes, a second clone. Each trial
flips bits, cuts, empties, zeroes, deletes or swaps some objects of the local store or of the remote, or a fifth of all
at once, or nothing at all; asks `verify --data`; and compares with what another, plain implementation finds by taking
every pack apart (`Apart`), and with what a fetch into an empty store brings. In every third trial `repair` runs
afterwards, with the clone as a source: all must be whole then, and no byte gone. Ends with 1 at the first difference
and prints the seed of that trial.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
from blake3 import blake3
from msgspec.structs import replace

from dvk.backend.local import LocalBackend
from dvk.commands.add import add
from dvk.commands.pull import pull
from dvk.commands.push import push
from dvk.commands.repair import repair
from dvk.commands.repo import Repo
from dvk.commands.verify import Level, VerifyResult, verify, wanted_versions
from dvk.commands.verify_local import IN_DAMAGED_PACKS
from dvk.errors import DvkError
from dvk.events import Note
from dvk.ids import EMPTY_FILE, PageId
from dvk.store.codec import decode_block
from dvk.store.examine_records import examine_records
from dvk.store.fetch import Wanted, fetch
from dvk.store.listing import Entries
from dvk.store.pack import BLOCK_HEADER, PackKind, open_block, parse_footer_of
from dvk.store.pages import Children, Chunks, ListKind, page_id, parse_page, read_entries
from dvk.store.restore import readable
from dvk.store.root import FILE, Root
from dvk.store.store import Store, as_column
from dvk.testing.command import say

_HEAL_EACH = 3
_SHARE_EACH = 10  # trials in which a fifth of all objects goes
_NOTHING_EACH = 12


class Wrong(AssertionError):
    """`verify` or `repair` did not say or do what was to be said or done."""


# ---------------------------------------------------------------- the world


@dataclass
class World:
    """A repository at `place/work`, its remote, and a clone that has everything."""

    place: str
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def top(self) -> str:
        """The work tree."""
        return os.path.join(self.place, "work")

    @property
    def store(self) -> str:
        """The local store."""
        return os.path.join(self.top, ".git", "dvk", "store")

    @property
    def remote(self) -> str:
        """The remote."""
        return os.path.join(self.place, "remote")

    @property
    def clone(self) -> str:
        """A colleague's clone."""
        return os.path.join(self.place, "clone")

    def repo(self, top: str = "") -> Repo:
        """The repository as a new process sees it."""
        return Repo(top or self.top, environ=self.environ)

    def git(self, *arguments: str, top: str = "") -> None:
        """Run git."""
        subprocess.run(["git", *arguments], cwd=top or self.top, env=self.environ, check=True, capture_output=True)

    def keep(self) -> None:
        """Remember the state to come back to."""
        for name in ("store", "remote", "state"):
            shutil.copytree(self._of(name), os.path.join(self.place, "kept", name))

    def reset(self) -> None:
        """Come back to it."""
        for name in ("store", "remote", "state"):
            shutil.rmtree(self._of(name))
            shutil.copytree(os.path.join(self.place, "kept", name), self._of(name))

    def _of(self, name: str) -> str:
        state = os.path.join(self.top, ".git", "dvk", "remotes")
        return {"store": self.store, "remote": self.remote, "state": state}[name]


def build(place: str) -> World:
    """As `_build`, with the same names of objects each time, as far as threads do the same in the same order."""
    chance = random.Random(11)
    with (
        mock.patch("os.urandom", chance.randbytes),
        mock.patch("random._urandom", chance.randbytes),
        mock.patch("dvk.store.push.time.time", lambda: 1_790_000_000.0),
    ):
        return _build(place)


def _build(place: str) -> World:
    """Five versions: a file of several chunks, a folder with big, small, empty and double files, text and noise."""
    world = World(place)
    home = os.path.join(place, "home")
    os.makedirs(home)
    os.makedirs(world.top)
    world.environ = {
        "PATH": os.environ["PATH"],
        "HOME": home,
        "GIT_CONFIG_NOSYSTEM": "1",
        "DVK_TRUST_REMOTES": f"file://{world.remote}",
        **{f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    world.git("init", "-q", "-b", "main")
    _write(world, "dvk.toml", f'format = 1\n[remote.origin]\nurl = "file://{world.remote}"\n'.encode())
    world.git("add", "dvk.toml")
    noise = random.Random(7)
    big = noise.randbytes(300_000)
    for version in range(5):
        big = big[: 50_000 + 40_000 * version] + noise.randbytes(500) + big[50_000 + 40_000 * version :]
        _write(world, "big.bin", big)
        _write(world, "table.csv", b"".join(b"%d,%d\n" % (i, i * version % 97) for i in range(3_000 + version)))
        for i in range(version, version + 6):
            _write(world, f"files/a/{i}.bin", noise.randbytes(noise.choice([40, 3_000, 90_000])))
        _write(world, "files/double", big)
        _write(world, "files/empty", b"")
        with world.repo() as repo:
            add(repo, ["big.bin", "table.csv", "files"])
        world.git("commit", "-q", "-m", f"version {version}")
        if version in (0, 2, 4):
            with world.repo() as repo:
                push(repo)
    world.git("clone", "-q", world.top, world.clone, top=place)
    with world.repo(world.clone) as repo:
        pull(repo)
    shutil.rmtree(os.path.join(world.clone, ".git", "dvk", "store"))
    shutil.copytree(world.store, os.path.join(world.clone, ".git", "dvk", "store"))
    # Only the stores may say what was there: files on disk would be a source of their own.
    for name in ("big.bin", "table.csv"):
        os.unlink(os.path.join(world.top, name))
    shutil.rmtree(os.path.join(world.top, "files"))
    world.keep()
    return world


def _write(world: World, name: str, data: bytes) -> None:
    path = os.path.join(world.top, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


# ---------------------------------------------------------------- damage


def objects(where: str) -> list[str]:
    """The keys of all objects of a store."""
    found = [
        os.path.relpath(os.path.join(folder, name), where) for folder, _, names in os.walk(where) for name in names
    ]
    return sorted(k for k in found if k == "dvk.json" or k[:2] in ("p/", "m/", "i/", "l/", "j/"))


def strike(where: str, chance: random.Random, keys: Sequence[str]) -> dict[str, str]:
    """Damage some objects; what was done to each."""
    done = {}
    for key in keys:
        path = os.path.join(where, key)
        with open(path, "rb") as file:
            data = file.read()
        how = chance.choice(["flip", "flip", "flip", "cut", "delete", "zero", "empty", "longer", "swap"])
        bad = data
        if how == "flip":
            at = chance.randrange(len(data) * 8)
            bad = data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]
        elif how == "cut":
            bad = data[: chance.randrange(len(data))]
        elif how == "zero":
            at = chance.randrange(len(data))
            bad = data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :]
        elif how == "empty":
            bad = b""
        elif how == "longer":
            bad = data + chance.randbytes(chance.choice([1, 4096]))
        elif how == "swap":
            other = chance.choice([k for k in objects(where) if k[:2] == key[:2]])
            with open(os.path.join(where, other), "rb") as file:
                bad = file.read()
        if how == "delete":
            os.unlink(path)
        elif bad != data:
            os.chmod(path, 0o600)
            with open(path, "wb") as file:
                file.write(bad)
        else:
            continue
        done[key] = how
    return done


# ---------------------------------------------------------------- what is there, by taking everything apart


@dataclass
class Apart:
    """All that is right in the packs of a store, by id, in plain dictionaries."""

    chunks: dict[bytes, int] = field(default_factory=dict)  #: of data packs: id -> length
    pages: dict[bytes, bytes] = field(default_factory=dict)
    recipes: dict[bytes, list[tuple[bytes, int]]] = field(default_factory=dict)  #: file -> (root page, size)

    def file(self, name: bytes, size: int) -> bool:
        """Whether a file can be put together."""
        if size == 0:
            return name == EMPTY_FILE
        if self.chunks.get(name) == size:
            return True
        return any(total == size and self._recipe(root, size) for root, total in self.recipes.get(name, []))

    def _recipe(self, root: bytes, size: int) -> bool:
        leaves = self._leaves(ListKind.RECIPE, root)
        if leaves is None:
            return False
        rows = [
            (leaf.ids[i].tobytes(), int(leaf.lengths[i]))
            for leaf in leaves
            if isinstance(leaf, Chunks)
            for i in range(len(leaf))
        ]
        return sum(n for _, n in rows) == size and all(self.chunks.get(name) == n for name, n in rows)

    def _leaves(self, kind: ListKind, root: bytes) -> list[Entries | Chunks] | None:
        data = self.pages.get(root)
        if data is None:
            return None
        body = parse_page(data, kind, subject="").body
        if not isinstance(body, Children):
            return [body]
        out: list[Entries | Chunks] = []
        for ref in body.refs:
            below = self._leaves(kind, ref.id)
            if below is None:
                return None
            out += below
        return out

    def missing(self, root: Root) -> set[bytes]:
        """The files of a version that cannot be put together; b"" for the file itself, or a lost list."""
        if root.kind == FILE:
            return set() if self.file(root.id, root.size) else {b""}
        leaves = self._leaves(ListKind.LISTING, root.id)
        if leaves is None:
            return {b""}
        out = set()
        for entries in leaves:
            if isinstance(entries, Entries):
                for i, name in enumerate(entries.names):
                    if entries.is_file[i] and not self.file(entries.ids[i].tobytes(), int(entries.sizes[i])):
                        out.add(name)
        return out


def _under_foreign_names(world: World) -> set[str]:
    """Packs of the local store whose tables are those of another pack."""
    out = set()
    for key in objects(world.store):
        good = os.path.join(world.place, "kept", "store", key)
        if key[:2] in ("p/", "m/") and os.path.exists(good):
            try:
                now, then = (
                    parse_footer_of(_headed(_read(path), key)) for path in (os.path.join(world.store, key), good)
                )
            except (DvkError, ValueError):
                continue
            if not np.array_equal(now.ids, then.ids):
                out.add(key)
    return out


def take_apart(where: str, *, but: Container[str] = (), salvage: bool = False) -> Apart:
    """Read every pack, believing nothing.

    Args:
        but: packs that are left out.
        salvage: take what its id proves from blocks that fail their checksums, too.
    """
    out = Apart()
    for key in objects(where):
        if key[:2] not in ("p/", "m/") or key in but:
            continue
        with open(os.path.join(where, key), "rb") as file:
            data = file.read()
        try:
            footer = parse_footer_of(_headed(data, key))
        except (DvkError, ValueError):
            continue
        if footer.kind.prefix != key[0]:
            continue
        for row in range(len(footer.recipes)):
            recipe = footer.recipe(row)
            out.recipes.setdefault(recipe.file, []).append((recipe.root, recipe.size))
        for b in range(len(footer.packed_len)):
            start = int(footer.block_offset[b])
            piece = memoryview(data)[start : start + BLOCK_HEADER.size + int(footer.packed_len[b])]
            try:
                stated = (int(footer.codec[b]), int(footer.raw_len[b]), int(footer.packed_len[b]))
                if salvage:
                    codec, raw_len, payload = *stated[:2], piece[BLOCK_HEADER.size :]
                else:
                    codec, raw_len, payload = open_block(piece, subject="")
                if (codec, raw_len, len(payload)) != stated:
                    continue
                raw = decode_block(codec, payload, raw_len)
            except DvkError:
                continue
            for row in np.flatnonzero(footer.chunk_block == b).tolist():
                at, name = int(footer.chunk_offset[row]), footer.ids[row].tobytes()
                part = raw[at : at + int(footer.chunk_len[row])]
                if footer.kind is PackKind.DATA and blake3(part).digest() == name:
                    out.chunks[name] = len(part)
                elif footer.kind is PackKind.PAGES and any(page_id(kind, part) == name for kind in ListKind):
                    out.pages[name] = part
    return out


def _headed(data: bytes, key: str) -> bytes:
    """A pack with a right header: readers of blocks never look at that."""
    kind = 1 if key[0] == "p" else 2
    return b"dvkPACK\0" + (1).to_bytes(2, "little") + kind.to_bytes(2, "little") + bytes(20) + data[32:]


# ---------------------------------------------------------------- trials


def trial(world: World, seed: int) -> str:
    """Damage, look, compare, sometimes mend; what was done, in a line.

    Raises:
        Wrong: something was not named, was named without reason, or was not mended.
    """
    chance = random.Random(seed)
    world.reset()
    local = chance.random() < 0.5
    where = world.store if local else world.remote
    keys = objects(where)
    if seed % _NOTHING_EACH == 0:
        chosen = []
    elif seed % _SHARE_EACH == 1:
        chosen = chance.sample(keys, len(keys) // 5)
    else:
        chosen = chance.sample(keys, chance.choice([1, 1, 2, 3]))
    done = strike(where, chance, chosen)
    what = ", ".join(f"{how} {key[:12]}" for key, how in sorted(done.items()))
    what = f"{'local' if local else 'remote'}: {what or 'nothing'}"
    try:
        if local:
            _local(world, done)
        else:
            _remote(world, done)
        if seed % _HEAL_EACH == 2 and done:
            _heal(world, where, local=local)
    except Exception as error:
        raise Wrong(f"{what}: {error}") from error
    return what


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise Wrong(f"{what}:\n  found  {found}\n  wanted {wanted}")


def _names(found: VerifyResult) -> dict[tuple[bytes, str], set[bytes]]:
    """(path, id) -> the files that cannot be had; b"" for the version itself."""
    out = {}
    for v in found.affected:
        missing = {m.path[len(v.path) + 1 :] for m in v.missing}
        out[v.path, v.id.hex()] = missing
    return out


def _local(world: World, done: dict[str, str]) -> None:
    with world.repo() as repo:
        wanted = wanted_versions(repo, (), (), everything=True)
        found = verify(repo, level=Level.DATA)

    def missing_of(apart: Apart) -> dict[tuple[bytes, str], set[bytes]]:
        return {(w.path, w.root.id.hex()): missing for w in wanted if (missing := apart.missing(w.root))}

    # A pack under the name of another one is read where no index says what that held.
    least = missing_of(take_apart(world.store))
    lost = missing_of(take_apart(world.store, but=_under_foreign_names(world)))
    beyond_saving = missing_of(take_apart(world.store, salvage=True))
    names = _names(found)
    for v in found.affected:
        saved = (v.path, v.id.hex()) not in beyond_saving
        _expect(f"that {v.id.hex()} can be saved", IN_DAMAGED_PACKS in v.elsewhere, saved)
    # Where a pack and what the index knew of it are gone, the list of what was added here still tells of the versions.
    index_is_whole = not any(key.startswith("i/") for key in done)
    _expect("versions not here", found.not_here, 0)
    if index_is_whole:
        _expect("affected versions", sorted(names), sorted(lost))
        _compare_files(names, lost)
    else:
        _expect("affected versions beyond what is lost", sorted(names.keys() - lost.keys()), [])
        _expect("lost versions that are not named", sorted(least.keys() - names.keys()), [])
    named = {o.key for o in found.objects if o.certain}
    hit = {key for key, how in done.items() if how != "delete" or (index_is_whole and key[:2] in ("p/", "m/"))}
    hit |= {key for key, how in done.items() if how == "delete" and key == "dvk.json"}
    # Another segment of the same store says nothing wrong; what it does not cover is read from footers.
    hit -= {key for key, how in done.items() if how == "swap" and key[:2] == "i/"}
    if "dvk.json" in hit - named and _is_another_id(world):
        hit.discard("dvk.json")  # docs/reliability-damage.md: the id of a local store is compared with nothing
    _expect("damaged objects that are not named", sorted(hit - named), [])
    _expect("objects named without reason", sorted(named - done.keys()), [])
    _expect("the verdict", found.damaged, bool(hit or lost) if index_is_whole else found.damaged)
    with world.repo() as repo:
        for w in wanted if "dvk.json" not in done else ():  # without that nobody opens the store
            if (w.path, w.root.id.hex()) not in lost and not _reads(repo.store, w.root):
                raise Wrong(f"{w.path!r} is not affected and cannot be read")
    revisions = {(w.path, w.root.id.hex()): w.revisions for w in wanted}
    for v in found.affected:
        _expect("revisions", v.revisions, revisions[v.path, v.id.hex()])


def _is_another_id(world: World) -> bool:
    """Whether dvk.json of the local store says what it said, but for the id."""
    found = Store(LocalBackend(world.store, read_only=True)).describe()
    known = Store(LocalBackend(os.path.join(world.place, "kept", "store"), read_only=True)).describe()
    return found is not None and known is not None and replace(found, store=known.store) == known


def _reads(store: Store, root: Root) -> bool:
    """Whether a store gives back all of a version, proven."""
    if root.kind == FILE:
        ids, sizes = as_column([root.id]), np.array([root.size], np.int64)
        return bool(readable(store, ids, sizes).all())
    entries = read_entries(PageId(root.id), store.load_page)
    return bool(readable(store, entries.ids[entries.is_file], entries.sizes[entries.is_file]).all())


def _compare_files(names: dict[tuple[bytes, str], set[bytes]], lost: dict[tuple[bytes, str], set[bytes]]) -> None:
    for version, missing in lost.items():
        if missing != {b""}:  # where a list is lost, its first path stands for what was on it
            _expect(f"files of {version}", sorted(names[version]), sorted(missing))


def _remote(world: World, done: dict[str, str]) -> None:
    apart = take_apart(world.remote)
    with world.repo() as repo:
        wanted = wanted_versions(repo, (), (), everything=False)
        found = verify(repo, remote="origin", level=Level.DATA)
    lost = {(w.path, w.root.id.hex()): missing for w in wanted if (missing := apart.missing(w.root))}
    rough = {(w.path, w.root.id.hex()) for w in wanted if not _arrives(world, w.root, done)}
    promised = _promised(world)
    named = {(v.path, v.id.hex()): v for v in found.affected}
    want = {}
    for w in wanted:
        key = (w.path, w.root.id.hex())
        if w.root.text in promised and key in rough:  # a small locator holds what its page pack has lost
            want[key] = "unreachable"  # this clone has all of it
        elif w.root.text not in promised:
            want[key] = "not-pushed" if key in lost and key in rough else "unprotected"
    _expect("affected versions", {k: v.state for k, v in sorted(named.items())}, dict(sorted(want.items())))
    _compare_files(_names(found), {k: v for k, v in lost.items() if k in rough})
    keys = {o.key for o in found.objects if o.certain}
    hit = {key for key, how in done.items() if how != "delete" and key[:2] != "i/"}
    _expect("damaged objects that are not named", sorted(hit - keys), [])
    also = {key.partition(".")[0] for key in done} | {f"{key}.ok" for key in done}
    _expect("objects named without reason", sorted(keys - done.keys() - also), [])
    _expect("the verdict", found.damaged or found.missing, bool(hit or want or keys))


def _arrives(world: World, root: Root, done: dict[str, str]) -> bool:
    """Whether a clone that has nothing gets a version without any detour."""
    notes: list[Note] = []
    if "dvk.json" in done:
        good = os.path.join(world.place, "kept", "remote", "dvk.json")
        place = tempfile.mkdtemp(dir=world.place)
        remote = shutil.copytree(world.remote, os.path.join(place, "remote"))
        shutil.copy(good, remote)
    else:
        place, remote = "", world.remote
    folder = tempfile.mkdtemp(dir=world.place)
    try:
        arrived = fetch(
            Store(LocalBackend(remote, read_only=True)),
            Store(LocalBackend(os.path.join(folder, "store"))),
            [Wanted(root)],
            on_event=lambda e: notes.append(e) if isinstance(e, Note) else None,
        )
        return not arrived.failures and not notes
    finally:
        shutil.rmtree(folder)
        if place:
            shutil.rmtree(place)


def _promised(world: World) -> set[str]:
    """The roots that a record of the remote names that can be read and is confirmed."""
    store = Store(LocalBackend(os.path.join(world.place, "kept", "remote"), read_only=True))
    known = store.describe()
    assert known is not None
    out = set()
    with ThreadPoolExecutor(1) as pool:
        remote = Store(LocalBackend(world.remote, read_only=True))
        remote.assume(known)
        records = examine_records(remote, pool, packs=set())
    for rid in records.live:
        out |= set(records.all[rid].roots)
    return out


def _contents(where: str) -> set[bytes]:
    """The bytes of all objects, wherever they lie."""
    out = set()
    for folder, _, names in os.walk(where):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                out.add(file.read())
    return out


def _heal(world: World, where: str, *, local: bool) -> None:
    """Repair; then all is whole, and what was damaged is still somewhere."""
    before = {
        data for key in objects(where) if key[:2] in ("p/", "m/") for data in [_read(os.path.join(where, key))] if data
    }
    with world.repo() as repo:
        done = repair(
            repo,
            remote=None if local else "origin",
            source=world.clone if local else None,
            level=Level.DATA,
            drop_records=True,
        )
    if done.after.damaged or done.after.missing:
        raise Wrong(f"not mended: {done.after.summary}; {[(o.key, o.message) for o in done.after.objects]}")
    _expect("packs that are gone", len(before - _contents(where)), 0)
    with world.repo() as repo:
        again = verify(repo, remote=None if local else "origin", level=Level.DATA)
        if again.damaged or again.missing or again.whole != again.versions:
            raise Wrong(f"not whole after the repair: {again.summary}")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def run(trials: int, seed: int, *, say: Callable[[str], None] = lambda _text: None) -> None:
    """Many trials.

    Raises:
        Wrong: the first one that failed, with its seed.
    """
    with tempfile.TemporaryDirectory() as place:
        world = build(place)
        for number in range(seed, seed + trials):
            try:
                say(f"{number}: {trial(world, number)}")
            except Wrong as error:
                raise Wrong(f"seed {number}: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m dvk.testing.damage", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="of the first trial; each one has the next number")
    options = parser.parse_args(arguments)
    sys.stdout.write(f"seeds {options.seed} to {options.seed + options.trials - 1}\n")
    try:
        run(options.trials, options.seed, say=say)
    except Wrong as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
