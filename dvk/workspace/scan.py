"""What a tracked file or folder holds right now, as columns: names, kinds, sizes and times.

`dvk status` of a folder of 50,000 files looks at each of them once and compares columns with the stat
cache, so its cost is 50,000 system calls and little else. Directories are walked by handle, never
through a link; everything that a folder may not hold (a FIFO, an unreadable file, a nested Git
repository, a link that leaves) is named in `problems`, all of it, so that the user clears it in one go.

    scan = scan_folder(root_fd, b"data/images", rules, on_event=ignore)
    scan.names[0], scan.stats.sizes[0]

Children are sorted with directories taken as `name/`, which makes the walk itself come out in the order
of whole paths; only an empty directory beside `its-name.something` needs a sort at the end.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from array import array
from bisect import bisect_left
from itertools import chain, pairwise
from operator import attrgetter
from typing import Protocol

import numpy as np
from msgspec import Struct, field

from dvk.errors import ChangedWhileRead, DvkError, FormatError, NotFound, Refused, StorageError
from dvk.events import Meter, OnEvent, ignore
from dvk.store.listing import Kind
from dvk.store.names import I64, U8, Names, show, windows
from dvk.store.paths import bad_names, check_link, why_bad_component
from dvk.timings import Stage, stage
from dvk.workspace.handles import DirHandles, os_error, special_file
from dvk.workspace.stats import TEMP_NAME as TEMP_NAME
from dvk.workspace.stats import Scan as Scan
from dvk.workspace.stats import Stats as Stats
from dvk.workspace.stats import empty_scan as empty_scan
from dvk.workspace.stats import signature as signature

_TEMP_START = b".dvk-"
_POINTER_END = b".dvk"
_SLASH = ord("/")

_BATCH = 1 << 12
_EXAMPLES = 5
_FIELDS = attrgetter("st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")
_N_FIELDS = 5
_ENCODING, _ENCODING_ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


class Ignores(Protocol):
    """What a folder leaves out (`.dvkignore`)."""

    def ignored(self, base: bytes, keys: list[bytes], /) -> list[bytes]:
        """Those of the sorted `keys` that are left out: entries of one folder, directories with a slash at the end.

        `base` is what stands before each, from the top of the work tree.
        """


def scan_file(root_fd: int, path: bytes) -> Scan:
    """The one entry, named b"", of the file `path` below `root_fd`.

    Raises:
        NotFound: it does not exist.
        Refused: it is no regular file (its kind is named), or a link stands on the way.
    """
    parent, _, name = path.rpartition(b"/")
    with DirHandles(root_fd) as dirs:
        fd = dirs.acquire(parent)
        try:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            raise os_error(error, path, "read") from error
        finally:
            dirs.release(parent)
    if not stat.S_ISREG(st.st_mode):
        raise special_file(path, st.st_mode)
    kind = Kind.EXEC if st.st_mode & 0o100 else Kind.FILE
    columns = [np.array([x], np.int64) for x in signature(st)]
    stats = Stats(columns[0], columns[1], columns[2], columns[3], device=st.st_dev)
    return Scan(Names.of([b""]), np.array([kind], np.uint8), stats, Names.of([]))


def scan_folder(
    root_fd: int, path: bytes, rules: Ignores | None = None, *, inside: bytes = b"", on_event: OnEvent = ignore
) -> Scan:
    """Everything in the folder `path` below `root_fd`, in the order of a listing.

    A file that vanishes during the walk is left out, as if the walk had come later.

    Args:
        inside: where `path` lies in a tracked folder; its links may point to anything in that.

    Raises:
        NotFound, Refused, StorageError: the folder itself is missing, no directory, or cannot be read.
            What is wrong inside it does not raise: see `Scan.problems`.
    """
    with stage(Stage.SCAN, count=0) as scanning, DirHandles(root_fd) as dirs:
        walk = _Walk(dirs, path, rules, Meter(on_event, "scan"), inside)
        walk.run()
        scanning.add(count=walk.rows)
        return walk.result()


class _Frame(Struct):
    """A directory whose entries wait to be put out, in order."""

    prefix: bytes  #: path relative to the folder with a slash, b"" for the folder itself
    keys: list[bytes]  #: sorted; directories end with a slash
    cuts: list[int]  #: positions of directories in `keys`
    first_row: int  #: row of its first non-directory among all rows
    at: int = 0  #: how many keys are done
    cut: int = 0  #: how many cuts are done


class _Walk(Struct):
    dirs: DirHandles
    top: bytes
    rules: Ignores | None
    meter: Meter
    inside: bytes = b""
    device: int = 0
    rows: int = 0  #: entries statted so far, in reading order
    pending: list[os.stat_result] = field(default_factory=list)
    #: of each field of a row, in reading order: int64s. One piece of memory that grows, as `blob` and `lengths`, since
    #: pieces by the thousand leave holes between what stays: a million files would take a third more.
    columns: tuple[bytearray, ...] = field(default_factory=lambda: tuple(bytearray() for _ in range(_N_FIELDS)))
    blob: bytearray = field(default_factory=bytearray)  #: of the names, in output order
    lengths: array[int] = field(default_factory=lambda: array("I"))
    runs: list[tuple[int, int]] = field(default_factory=list)  #: rows in output order
    links: dict[int, bytes] = field(default_factory=dict)  #: row -> target
    misplaced: bool = False
    ignored: int = 0
    ignored_examples: list[bytes] = field(default_factory=list)
    leftovers: list[bytes] = field(default_factory=list)
    problems: list[DvkError] = field(default_factory=list)
    euid: int = field(default_factory=os.geteuid)

    def run(self) -> None:
        fd = self.dirs.acquire(self.top)
        try:
            self.device = os.fstat(fd).st_dev
            stack = [self.read(fd, b"")]
        finally:
            self.dirs.release(self.top)
        while stack:
            frame = stack[-1]
            if frame.cut == len(frame.cuts):
                self.put(frame, len(frame.keys))
                stack.pop()
                continue
            cut = frame.cuts[frame.cut]
            self.put(frame, cut)
            frame.at, frame.cut = cut + 1, frame.cut + 1
            child = self.enter(frame, cut)
            if child is not None:
                stack.append(child)

    def enter(self, frame: _Frame, cut: int) -> _Frame | None:
        """Read the directory at `cut`; None when it has nothing to put out after this."""
        key = frame.keys[cut]
        prefix = frame.prefix + key
        where = self.full(prefix[:-1])
        try:
            fd = self.dirs.acquire(where)
        except NotFound:
            return None
        except DvkError as error:
            self.problems.append(error)
            return None
        try:
            child = self.read(fd, prefix)
            if not child.keys:
                self.put_empty(frame, cut, os.fstat(fd))
                return None
            return child
        except StorageError as error:
            self.problems.append(error)
            return None
        finally:
            self.dirs.release(where)

    def read(self, fd: int, prefix: bytes) -> _Frame:
        """List one directory and stat what is no directory in it."""
        try:
            with os.scandir(fd) as listing:
                entries = list(listing)
        except OSError as error:
            raise os_error(error, self.full(prefix[:-1]), "read") from error
        if not entries:
            return _Frame(prefix, [], [], self.rows)
        # One encode for all: a call each would cost as much as the stat.
        text = "\0".join([e.name + "/" if e.is_dir(follow_symlinks=False) else e.name for e in entries])
        keys = text.encode(_ENCODING, _ENCODING_ERRORS).split(b"\0")
        order = sorted(range(len(keys)), key=keys.__getitem__)
        keys = [keys[i] for i in order]
        entries = [entries[i] for i in order]
        left_out = self.left_out(prefix, keys, with_directories="/" in text)
        if left_out:
            entries = [e for e, key in zip(entries, keys, strict=True) if key not in left_out]
            keys = [key for key in keys if key not in left_out]
        files, names = entries, keys
        if "/" in text:
            files = [e for e, key in zip(entries, keys, strict=True) if key[-1] != _SLASH]
            names = [key for key in keys if key[-1] != _SLASH]
        del entries
        first_row = self.rows
        dropped: set[bytes] = set()
        for start in range(0, len(names), _BATCH):
            # An entry keeps its stat result, 700 bytes: let go of both as soon as they are columns.
            self.measure(fd, prefix, names[start : start + _BATCH], files[:_BATCH], dropped)
            del files[:_BATCH]
        if dropped:
            keys = [key for key in keys if key not in dropped]
        cuts = [i for i, key in enumerate(keys) if key[-1] == _SLASH] if "/" in text else []
        return _Frame(prefix, keys, cuts, first_row)

    def left_out(self, prefix: bytes, keys: list[bytes], *, with_directories: bool) -> set[bytes]:
        """Those of the sorted `keys` that are no entries: ignored, temporary, or not to be walked into."""
        out: set[bytes] = set()
        if self.rules is not None:
            ignored = self.rules.ignored(self.full(prefix) if prefix or not self.top else self.top + b"/", keys)
            self.ignored += len(ignored)
            self.ignored_examples += [
                prefix + k.rstrip(b"/") for k in ignored[: _EXAMPLES - len(self.ignored_examples)]
            ]
            out.update(ignored)
        # In a sorted list, names with a common start are found without looking at the others.
        for i in range(bisect_left(keys, _TEMP_START), len(keys)):
            if not keys[i].startswith(_TEMP_START):
                break
            if TEMP_NAME.fullmatch(keys[i]):
                self.leftovers.append(prefix + keys[i])
                out.add(keys[i])
        for key in (b".git", b".git/"):
            i = bisect_left(keys, key)
            if i < len(keys) and keys[i] == key and key not in out:
                self.problems.append(
                    Refused(
                        "is a Git repository inside a tracked folder",
                        subject=show(self.full(prefix[:-1]) or prefix),
                        hint="remove its .git, or name it in .dvkignore",
                    )
                )
                out.add(key)
        if with_directories:
            for key in keys:
                if key[-1] == _SLASH and key not in out and (reason := why_bad_component(key[:-1])):
                    self.problems.append(self.bad_name(prefix + key[:-1], reason))
                    out.add(key)
        return out

    def measure(
        self,
        fd: int,
        prefix: bytes,
        names: list[bytes],
        files: list[os.DirEntry[str]],
        dropped: set[bytes],
    ) -> None:
        """Stat one batch; what turns out to be no entry is explained and goes to `dropped`."""
        try:
            stats = [e.stat(follow_symlinks=False) for e in files]
        except OSError:
            names, stats = self.measure_each(prefix, names, files, dropped)
        modes = [st.st_mode for st in stats]
        if modes and (min(modes) < stat.S_IFREG or max(modes) >= stat.S_IFLNK):
            names, stats = self.sort_out(fd, prefix, names, stats, dropped)
        if self.euid:
            self.check_readable(fd, prefix, names, stats)
        self.pending += stats
        self.rows += len(stats)
        if len(self.pending) >= _BATCH:
            self.flush()

    def measure_each(
        self, prefix: bytes, names: list[bytes], files: list[os.DirEntry[str]], dropped: set[bytes]
    ) -> tuple[list[bytes], list[os.stat_result]]:
        """As `measure`, where some file vanished or may not be looked at."""
        kept, stats = [], []
        for name, entry in zip(names, files, strict=True):
            try:
                stats.append(entry.stat(follow_symlinks=False))
                kept.append(name)
            except OSError as error:
                dropped.add(name)
                if error.errno != errno.ENOENT:
                    self.problems.append(os_error(error, self.full(prefix + name), "read"))
        return kept, stats

    def sort_out(
        self, fd: int, prefix: bytes, names: list[bytes], stats: list[os.stat_result], dropped: set[bytes]
    ) -> tuple[list[bytes], list[os.stat_result]]:
        """Read the links and refuse what is neither file nor link."""
        kept: list[bytes] = []
        rows: list[os.stat_result] = []
        for name, st in zip(names, stats, strict=True):
            path = prefix + name
            try:
                if stat.S_ISLNK(st.st_mode):
                    target = os.readlink(name, dir_fd=fd)
                    self.check_link(path, target)
                    self.links[self.rows + len(rows)] = target
                elif stat.S_ISDIR(st.st_mode):
                    raise ChangedWhileRead(
                        "became a directory while dvk looked at the folder", subject=show(self.full(path))
                    )
                elif not stat.S_ISREG(st.st_mode):
                    raise special_file(self.full(path), st.st_mode)
            except OSError as error:
                dropped.add(name)
                if error.errno != errno.ENOENT:
                    self.problems.append(os_error(error, self.full(path), "read"))
            except DvkError as error:
                dropped.add(name)
                self.problems.append(error)
            else:
                kept.append(name)
                rows.append(st)
        return kept, rows

    def check_link(self, path: bytes, target: bytes) -> None:
        """As `paths.check_link`, for a link of the user's own: it may be a fine link and is none for a folder."""
        try:
            check_link(os.path.join(self.inside, path), target)
        except FormatError as error:
            raise Refused(error.message, subject=show(self.full(path)), hint=error.hint) from error

    def check_readable(self, fd: int, prefix: bytes, names: list[bytes], stats: list[os.stat_result]) -> None:
        """Name the files that an `add` would fail to open, without opening them all."""
        euid = self.euid
        doubtful = [
            i for i, st in enumerate(stats) if not (st.st_uid == euid and st.st_mode & 0o400)
        ]  # a link shows 0o777 and is passed by the next line
        for i in doubtful:
            if stat.S_ISREG(stats[i].st_mode) and not os.access(names[i], os.R_OK, dir_fd=fd, effective_ids=True):
                self.problems.append(
                    StorageError("cannot be read: permission denied", subject=show(self.full(prefix + names[i])))
                )

    def put(self, frame: _Frame, stop: int) -> None:
        """Put out the keys of `frame` up to `stop`, none of which is a directory."""
        run = frame.keys[frame.at : stop] if (frame.at, stop) != (0, len(frame.keys)) else frame.keys
        if not run:
            return
        prefix = frame.prefix
        self.blob += prefix + prefix.join(run)
        extra = len(prefix)
        self.lengths.extend([extra + len(name) for name in run])
        row = frame.first_row + frame.at - frame.cut
        self.runs.append((row, row + len(run)))
        self.meter.advance(items=len(run))

    def put_empty(self, frame: _Frame, cut: int, st: os.stat_result) -> None:
        """Put out a directory that holds nothing, as an entry of its own."""
        name = frame.keys[cut][:-1]
        self.blob += frame.prefix + name
        self.lengths.append(len(frame.prefix) + len(name))
        self.runs.append((self.rows, self.rows + 1))
        self.pending.append(st)
        self.rows += 1
        # As an entry it is `name`, not `name/`: before a sibling like `name.txt`, put out already.
        if cut and frame.keys[cut - 1] > name:
            self.misplaced = True

    def flush(self) -> None:
        """Turn what was statted since the last time into columns."""
        if not self.pending:
            return
        n = len(self.pending)
        try:
            flat = np.fromiter(chain.from_iterable(map(_FIELDS, self.pending)), np.int64, _N_FIELDS * n)
        except OverflowError:
            rows = [(st.st_mode, *signature(st)) for st in self.pending]
            flat = np.array(rows, np.int64)
        for column, values in zip(self.columns, flat.reshape(n, _N_FIELDS).T, strict=True):
            column += values.tobytes()
        self.pending = []

    def result(self) -> Scan:
        self.flush()
        names = Names.cut(np.frombuffer(self.blob, np.uint8), np.frombuffer(self.lengths, np.uint32))
        self.lengths = array("I")
        in_order = not self.misplaced and all(
            a[1] == b[0] for a, b in pairwise([(0, 0), *self.runs, (self.rows, self.rows)])
        )
        order = np.zeros(0, np.int64) if in_order else _expand(self.runs)
        if self.misplaced:
            each = list(names)
            by_name = np.array(sorted(range(len(each)), key=each.__getitem__), np.intp)
            names, order = names.take(by_name), order[by_name]

        def column(k: int) -> I64:
            whole = np.frombuffer(self.columns[k], np.int64)
            return whole if in_order else whole[order]

        kinds = _kinds(column(0))
        self.columns[0].clear()  # with a million files every array counts
        linked = np.flatnonzero(kinds == Kind.LINK)
        targets = [self.links[row] for row in (linked if in_order else order[linked]).tolist()]
        sizes = column(1)
        sizes[kinds == Kind.EMPTYDIR] = 0
        mtime_ns, ctime_ns, inodes = column(2), column(3), column(4)
        self.check_all_names(names)
        return Scan(
            names=names,
            kinds=kinds,
            stats=Stats(sizes, mtime_ns, ctime_ns, inodes, self.device),
            targets=Names.of(targets),
            ignored=self.ignored,
            ignored_examples=tuple(self.ignored_examples),
            leftovers=tuple(self.leftovers),
            problems=tuple(self.problems),
        )

    def check_all_names(self, names: Names) -> None:
        for i, reason in bad_names(names):
            self.problems.append(self.bad_name(names[i], reason))
        for i in _ending_with(names, _POINTER_END):
            self.problems.append(
                Refused(
                    "is a pointer inside a tracked folder",
                    subject=show(self.full(names[i])),
                    hint="one path has one owner: move it out of the folder, or name it in .dvkignore",
                )
            )

    def bad_name(self, path: bytes, reason: str) -> FormatError:
        return FormatError(f"its name {reason}", subject=show(self.full(path)), hint="rename it")

    def full(self, path: bytes) -> bytes:
        """`path` of the folder as a path from the root."""
        return self.top + b"/" + path if self.top and path else self.top or path


def _kinds(modes: I64) -> U8:
    kinds = np.empty(len(modes), np.uint8)
    for run in windows(len(modes)):
        some = modes[run]
        form = some & 0o170000
        kinds[run] = np.where(some & 0o100, np.uint8(Kind.EXEC), np.uint8(Kind.FILE))
        kinds[run][form == stat.S_IFLNK] = Kind.LINK
        kinds[run][form == stat.S_IFDIR] = Kind.EMPTYDIR
    return kinds


def _expand(runs: list[tuple[int, int]]) -> I64:
    """The numbers of half-open runs, one run after the other."""
    if not runs:
        return np.zeros(0, np.int64)
    bounds = np.array(runs, np.int64)
    lengths = bounds[:, 1] - bounds[:, 0]
    ends = np.cumsum(lengths)
    order: I64 = np.arange(int(ends[-1]), dtype=np.int64) + np.repeat(bounds[:, 0] - (ends - lengths), lengths)
    return order


def _ending_with(names: Names, end: bytes) -> list[int]:
    """The positions of names that end with `end`."""
    found: list[int] = []
    if not len(names.blob):
        return found
    for run in windows(len(names)):
        part = names.slice(run.start, run.stop)
        hit = part.lengths >= len(end)
        for k in range(1, len(end) + 1):
            hit &= part.blob[np.maximum(part.offsets[1:] - k, 0)] == end[-k]
            if not hit.any():
                break
        found += (np.flatnonzero(hit) + run.start).tolist()
    return found
