"""Which parts of its tracked folders a worktree asked for: state that nothing else can tell, kept durably.

`dvk pull data/images/val` brings 1,200 of 50,000 files. The other 48,800 are *not present*; were they
taken for deleted, the next `add` would commit a folder of 1,200. So what was asked for is recorded, with
fsync, before it is acted upon, and a lost record is told apart from an empty one:

    selection = Selection.load(state_dir)
    selected = selection.get(b"data/images")       # None: never asked, or the record was lost
    inside = selection.covers(b"data/images", listing.names)

    with edit(state_dir) as selection:
        selection.add(b"data/images", b"val")

The file is JSON for the sake of the person who has to look into it: docs/format/workspace-state.md.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
from bisect import bisect_right
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field
from xxhash import xxh3_64_hexdigest

from dvk.errors import FormatError, NewerFormat, StorageError, StorageFull
from dvk.store.names import Names, show
from dvk.store.paths import why_bad

_VERSION = 2
_FILE = b"selection.json"
_MAX_BYTES = 64 << 20
_HINT = (
    "remove the file and run `dvk add --keep-missing PATH` (files that are not here stay in the folder) "
    "or `dvk add --delete-missing PATH` (they are deleted from it)"
)


class Selected(Struct, frozen=True):
    """What of one folder was asked for: everything, or what lies at or below some paths inside it.

    Attributes:
        prefixes: files and directories inside the folder, ascending, none inside another; None for all.
    """

    prefixes: tuple[bytes, ...] | None

    @property
    def everything(self) -> bool:
        """Whether the whole folder was asked for."""
        return self.prefixes is None

    def covers(self, names: Names) -> npt.NDArray[np.bool_]:
        """bool[n] for ascending `names`: which of them were asked for."""
        if self.prefixes is None:
            return np.ones(len(names), np.bool_)
        mask = np.zeros(len(names), np.bool_)
        for prefix in self.prefixes:
            at = names.find(prefix)
            if at < len(names) and names[at] == prefix:
                mask[at] = True
            start, stop = names.under(prefix)
            mask[start:stop] = True
        return mask

    def covers_one(self, name: bytes) -> bool:
        """Whether the one path `name` inside the folder was asked for."""
        if self.prefixes is None:
            return True
        while name:
            if _contains(self.prefixes, name):
                return True
            name = name.rpartition(b"/")[0]
        return False

    def plus(self, prefix: bytes) -> Selected:
        """This and what lies at or below `prefix`; b"" is everything."""
        if self.prefixes is None or not prefix:
            return Selected(None)
        return Selected(normal_prefixes((*self.prefixes, prefix)))


class Selection(Struct):
    """What was asked for of each tracked folder of a worktree. Change it inside `edit`."""

    folders: dict[bytes, Selected] = field(default_factory=dict)

    @classmethod
    def load(cls, state_dir: bytes) -> Selection:
        """The recorded selection; an empty one when nothing was ever recorded.

        Raises:
            FormatError, NewerFormat: the record is damaged or by a newer dvk. It is not guessed at: to take
                what is not here for deleted would lose it.
            StorageError: it cannot be read.
        """
        path = os.path.join(state_dir, _FILE)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise StorageError(f"cannot be read: {error.strerror}", subject=show(path)) from error
        return cls(_parse(data, subject=show(path)))

    def get(self, folder: bytes) -> Selected | None:
        """What was asked for of `folder`; None when there is no record of it."""
        return self.folders.get(folder)

    def covers(self, folder: bytes, names: Names) -> npt.NDArray[np.bool_]:
        """bool[n] for ascending `names` inside `folder`; without a record, nothing was asked for."""
        selected = self.get(folder)
        return selected.covers(names) if selected is not None else np.zeros(len(names), np.bool_)

    def add(self, folder: bytes, prefix: bytes) -> None:
        """Ask for what lies at or below `prefix` inside `folder` as well; b"" asks for everything."""
        self.folders[folder] = self.folders.get(folder, Selected(())).plus(prefix)

    def set_all(self, folder: bytes) -> None:
        """Ask for everything in `folder`."""
        self.folders[folder] = Selected(None)

    def remove(self, folder: bytes) -> None:
        """Forget `folder`, which is no longer tracked here; nothing happens if it is not known."""
        self.folders.pop(folder, None)

    def rename(self, folder: bytes, to: bytes) -> None:
        """`folder` is called `to` from now on."""
        if folder in self.folders:
            self.folders[to] = self.folders.pop(folder)

    def save(self, state_dir: bytes) -> None:
        """Replace the record in one step, on the medium when this returns.

        Raises:
            StorageFull, StorageError: it could not be written; the old record stands.
        """
        path = os.path.join(state_dir, _FILE)
        temp = os.path.join(state_dir, b"selection-" + secrets.token_hex(16).encode() + b".tmp")
        try:
            os.makedirs(state_dir, mode=0o700, exist_ok=True)
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(_format(self.folders))
                file.flush()
                os.fsync(file.fileno())
            os.rename(temp, path)
            _sync_dir(state_dir)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temp)
            category = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
            raise category(f"cannot be written: {error.strerror}", subject=show(path)) from error


@contextlib.contextmanager
def edit(state_dir: bytes) -> Iterator[Selection]:
    """The selection to change; saved when the block ends well, with no other process between.

    Where the filesystem has no locks, two processes that change it at once may lose one of the changes.
    """
    os.makedirs(state_dir, mode=0o700, exist_ok=True)
    path = os.path.join(state_dir, b"selection.lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise StorageError(f"cannot be locked: {error.strerror}", subject=show(path)) from error
        selection = Selection.load(state_dir)
        before = dict(selection.folders)
        yield selection
        if selection.folders != before:
            selection.save(state_dir)
    finally:
        os.close(fd)


def _contains(ascending: tuple[bytes, ...], name: bytes) -> bool:
    i = bisect_right(ascending, name)
    return i > 0 and ascending[i - 1] == name


def normal_prefixes(prefixes: Iterable[bytes]) -> tuple[bytes, ...]:
    """Ascending, each once, none at or below another."""
    wanted = set(prefixes)

    def inside(prefix: bytes) -> bool:
        parent = prefix.rpartition(b"/")[0]
        while parent:
            if parent in wanted:
                return True
            parent = parent.rpartition(b"/")[0]
        return False

    return tuple(sorted(prefix for prefix in wanted if not inside(prefix)))


def _format(folders: dict[bytes, Selected]) -> bytes:
    # A name of any bytes is a JSON string: bytes that are no UTF-8 become lone surrogates, escaped.
    record = {
        _text(folder): "all" if selected.prefixes is None else [_text(p) for p in selected.prefixes]
        for folder, selected in sorted(folders.items())
    }
    return (
        json.dumps({"version": _VERSION, "check": _check(record), "folders": record}, indent=1).encode("ascii") + b"\n"
    )


def _check(folders: object) -> str:
    """A checksum over what was asked for: a name with one bit turned over is as good a name as any."""
    return xxh3_64_hexdigest(json.dumps(folders, sort_keys=True, separators=(",", ":")).encode("ascii"))


def _parse(data: bytes, *, subject: str) -> dict[bytes, Selected]:
    def damaged(why: str) -> FormatError:
        return FormatError(f"the record of what this worktree asked for is damaged: {why}", subject=subject, hint=_HINT)

    if len(data) > _MAX_BYTES:
        raise damaged(f"more than {_MAX_BYTES} bytes")
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damaged("it is no JSON") from error
    if not isinstance(record, dict) or not isinstance(record.get("version"), int):
        raise damaged("it has no version")
    if record["version"] > _VERSION:
        raise NewerFormat(
            f"is in version {record['version']} of its format; this dvk knows {_VERSION}",
            subject=subject,
            hint="upgrade dvk",
        )
    folders = record.get("folders")
    keys = {"version", "folders", "check"} if record["version"] == _VERSION else {"version", "folders"}
    if set(record) != keys or record["version"] < 1 or not isinstance(folders, dict):
        raise damaged("it is not laid out as it should be")
    if "check" in record and record["check"] != _check(folders):
        raise damaged("it fails its checksum")
    out: dict[bytes, Selected] = {}
    for folder, parts in folders.items():
        name = _bytes(folder)
        if name is None or why_bad(name):
            raise damaged("a folder has an impossible name")
        if parts == "all":
            out[name] = Selected(None)
            continue
        if not isinstance(parts, list):
            raise damaged(f'{show(name)} has neither "all" nor a list')
        prefixes = [_bytes(part) if isinstance(part, str) else None for part in parts]
        kept = tuple(p for p in prefixes if p is not None and not why_bad(p))
        if len(kept) != len(parts):
            raise damaged(f"{show(name)} has an impossible path in its list")
        out[name] = Selected(normal_prefixes(kept))
    return out


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes | None:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None


def _sync_dir(path: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
