"""A folder that is put back to one state again and again, and a name for the state that it is in now.

    kept = Kept(place, saved)          # `saved` is a copy of what `place` has to become
    kept.reset()                       # only what differs is written
    ...strike something...
    kept.state()                       # equal for equal states, whatever their inodes and times are

Problem: thousands of strikes at one small project leave a few hundred different states, and to judge a state (run the
command again, read all versions back from everywhere) costs five times what the strike does. A state that was judged
needs no second judge, so it needs a name: the digest of all paths, modes and contents.

Two kinds of files hold inodes and times of the files beside them, which differ in each copy of one state: the stat
caches of dvk and the index of Git. What they *say* is digested: which entries, with which ids, and whether an entry
will be believed of the file that lies there. Of lock files the content means nothing (the number of the last owner).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from blake3 import blake3

from dvk.workspace.statcache import StatCache, cache_file

_LOCKS = ("/dvk/lock", "/dvk/worktree.lock")
_INDEX_ENTRY = struct.Struct(">10L20sH")


@dataclass(frozen=True, slots=True)
class _Entry:
    """What `lstat` says; of a folder only what is ours to put back."""

    mode: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> _Entry:
        if stat.S_ISDIR(info.st_mode):
            return cls(info.st_mode, 0, 0, info.st_mtime_ns, 0)
        return cls(info.st_mode, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Kept:
    """`place` and what it has to become. Nobody writes to `saved`, and no clock goes back meanwhile."""

    def __init__(self, place: str, saved: str) -> None:
        self._place, self._saved = place, saved
        self._wanted = dict(_walk(saved))
        self._laid: dict[str, _Entry] = {}  # what `reset` left, by which it sees what was changed since
        self._digests: dict[str, tuple[_Entry, bytes]] = {}

    def reset(self) -> None:
        """Make `place` what `saved` is. A file that nobody touched since the last time is left alone."""
        found = dict(_walk(self._place))
        for path in sorted(found, reverse=True):  # folders after what is in them
            wanted = self._wanted.get(path)
            if wanted is not None and wanted.is_folder == found[path].is_folder:
                continue
            if found[path].is_folder:
                os.rmdir(os.path.join(self._place, path))
            else:
                os.unlink(os.path.join(self._place, path))
            del found[path]
        folders = []
        for path, wanted in self._wanted.items():  # folders before what is in them
            there, target = found.get(path), os.path.join(self._place, path)
            if wanted.is_folder:
                if there is None:
                    os.mkdir(target)
                folders.append((target, wanted))
            elif there is None or there != self._laid.get(path):
                if there is not None:
                    os.unlink(target)
                shutil.copy2(os.path.join(self._saved, path), target, follow_symlinks=False)
                self._laid[path] = _Entry.of(os.lstat(target))
        for target, wanted in reversed(folders):
            if _Entry.of(os.lstat(target)) != wanted:
                os.chmod(target, stat.S_IMODE(wanted.mode))
                os.utime(target, ns=(wanted.mtime_ns, wanted.mtime_ns))

    def state(self) -> bytes:
        """The name of the state that `place` is in."""
        digest = blake3()
        for path, entry in sorted(_walk(self._place)):
            digest.update(b"%s\0%o\0" % (os.fsencode(path), entry.mode))
            if not entry.is_folder:
                digest.update(self._content(path, entry))
        return digest.digest()

    def _content(self, path: str, entry: _Entry) -> bytes:
        full = os.path.join(self._place, path)
        if stat.S_ISLNK(entry.mode):
            return blake3(os.fsencode(os.readlink(full))).digest()
        if path.endswith(_LOCKS):
            return bytes(32)
        folder, name = os.path.split(full)
        if os.path.basename(folder) == "stat" and (said := _cache_says(folder, name)) is not None:
            return said
        known = self._digests.get(path)
        if known is not None and known[0] == entry:
            return known[1]
        with open(full, "rb") as file:
            data = file.read()
        found = blake3(_index_says(data) if path.endswith(".git/index") else data).digest()
        self._digests[path] = (entry, found)
        return found


def _walk(top: str) -> Iterator[tuple[str, _Entry]]:
    """All below `top`, each folder before what is in it."""

    def below(folder: str, prefix: str) -> Iterator[tuple[str, _Entry]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                info = _Entry.of(entry.stat(follow_symlinks=False))
                yield prefix + entry.name, info
                if info.is_folder:
                    yield from below(entry.path, f"{prefix}{entry.name}/")

    return below(top, "")


def _cache_says(folder: str, name: str) -> bytes | None:
    """What the stat cache at `folder/name` will be believed to say of the files there; None if it is not readable."""
    state_dir = os.path.dirname(folder)
    top = os.path.dirname(os.path.dirname(state_dir))
    for path in _tracked(top):
        if cache_file(os.fsencode(state_dir), path) != os.fsencode(os.path.join(folder, name)):
            continue
        cache = StatCache.load(os.fsencode(state_dir), path)
        if cache is None:
            return None
        said = blake3(b"%s\0%s\0%d" % (path, cache.root_id, cache.durable))
        for i, entry in enumerate(cache.names):
            believed = bool(cache.trusted[i]) and _is_as_cached(cache, i, _file_of(top, path, entry))
            said.update(b"%s\0%d\0%d\0" % (entry, int(cache.kinds[i]), believed))
            said.update(cache.ids[i].tobytes())
        return said.digest()
    return None


def _tracked(top: str) -> list[bytes]:
    """Paths that have or had a pointer in the work tree: all names at its top."""
    names = {os.fsencode(name.removesuffix(".dvk")) for name in os.listdir(top)}
    return sorted(names - {b".git"})


def _file_of(top: str, path: bytes, entry: bytes) -> bytes:
    """Where the entry of a tracked folder lies; a tracked file is its own and only entry."""
    tracked = os.path.join(os.fsencode(top), path)
    return os.path.join(tracked, entry) if os.path.isdir(tracked) else tracked


def _is_as_cached(cache: StatCache, i: int, file: bytes) -> bool:
    with contextlib.suppress(OSError):
        info = os.lstat(file)
        stats = cache.stats
        seen = (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
        return seen == (stats.sizes[i], stats.mtime_ns[i], stats.ctime_ns[i], stats.inodes[i])
    return False


def _index_says(data: bytes) -> bytes:
    """An index of Git's version 2 or 3 without times, inodes and its own sum; other bytes as they are."""
    if data[:4] != b"DIRC" or int.from_bytes(data[4:8], "big") not in (2, 3):
        return data
    at, said = 12, [data[:12]]
    for _ in range(int.from_bytes(data[8:12], "big")):
        if len(data) < at + _INDEX_ENTRY.size:
            return data
        fields = _INDEX_ENTRY.unpack_from(data, at)
        begin = at + _INDEX_ENTRY.size + (2 if fields[11] & 0x4000 else 0)
        end = data.find(b"\0", begin)
        if end < 0:
            return data
        said.append(b"%o\0%s\0%d\0%s\0" % (fields[6], fields[10], fields[11], data[begin:end]))
        at += (end - at) // 8 * 8 + 8
    return b"".join([*said, data[at:-20]])
