"""A folder of files as a medium: the local store, and `file://` remotes.

>>> import tempfile
>>> b = LocalBackend(tempfile.mkdtemp() + "/store")
>>> b.put("p/ab/abcd", [b"hello ", b"world"])
>>> b.get_range("p/ab/abcd", 6, 5)
b'world'

The problem is the power cut. A file that was written and renamed but not synced comes back with size 0
under its final name; one whose folder was not synced comes back under its temporary name, or not at all.
So `put` goes through every step: temporary file on the same filesystem, counted writes, sync of the
file, rename (or link, when the key must be new), sync of the folder and of the parent of each folder that is
new to this process. A failed sync means that the kernel may have dropped the pages and marked them
clean; that file is thrown away and never synced again.

Folders are opened one component at a time and links below the root are never followed, since a shared
folder lets others put links where we expect ours. The root itself may be reached through a link. New
folders take the permissions of an existing root without the right of others to write (so that a
group-writable root makes a store for the group), and a root that we create is 0700.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from dvk.backend.contract import (
    Backend,
    Buffer,
    Capabilities,
    KeyExists,
    KeyMissing,
    Listed,
    check_key,
    check_prefix,
    check_range,
    is_key,
)
from dvk.backend.disk import (
    OPEN_DIR,
    is_temporary,
    locked_folder,
    make_durable_dirs,
    sync_fd,
    translate,
    write_all,
)
from dvk.backend.text import printable
from dvk.errors import Corrupt, FormatError, StorageError
from dvk.timings import Stage, stage

#: O_NONBLOCK so that a FIFO in our place cannot hang the reader.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_TMP = "tmp"
_STALE_S = 24 * 3600
_KEPT_OPEN = 64
_KEPT_PREFIXES = ("p/", "m/")  # packs: immutable, and read in many ranges
_GAP_BYTES = 128 << 10  # a pread of a page that is not cached takes 0.1 ms, on a network filesystem ten times that
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class _OpenFile:
    """A file descriptor that lives as long as somebody reads from it.

    Closing on the last reference rather than on eviction keeps a reader from finding its number reused
    for another file, which would be wrong bytes without any error.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class LocalBackend(Backend):
    """Objects as files under `root`, an absolute path that need not exist yet.

    `read_only` refuses `put` and `delete` before anything is touched. `unnoticed` reads do not count as use of what is
    read, where the system lets its owner say so. Safe from many threads and many processes at once. Deleting a file
    while it is read is safe: the reader finishes.
    """

    def __init__(self, root: str, *, read_only: bool = False, unnoticed: bool = False) -> None:
        if not os.path.isabs(root) or "\0" in root:
            raise ValueError(f"the root of a local store must be an absolute path, not {root!r}")
        self.root = root
        self.name = printable(root)
        self.read_only = read_only
        self._read_flags = _READ | (getattr(os, "O_NOATIME", 0) if unnoticed else 0)
        self.capabilities = Capabilities(create_only=True, releases_parts=True, gap_bytes=_GAP_BYTES)
        self._lock = threading.Lock()
        self._handles: OrderedDict[str, _OpenFile] = OrderedDict()
        self._durable: set[str] = set()  # folders whose entry in the parent this process has synced
        self._swept = False

    # -- writing ---------------------------------------------------------------------------------

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        check_key(key)
        self._check_writable(key)
        folder, _, name = key.rpartition("/")
        with contextlib.ExitStack() as stack:
            stack.enter_context(translate(f"{self.name}/{key}"))
            tmp_dir = self._make_folder(_TMP)
            stack.callback(os.close, tmp_dir)
            temporary = self._write_temporary(tmp_dir, parts)
            try:
                target = self._make_folder(folder)
                stack.callback(os.close, target)
                if create_only:
                    self._publish_new(tmp_dir, temporary, target, name, key)
                else:
                    os.rename(temporary, name, src_dir_fd=tmp_dir, dst_dir_fd=target)
                sync_fd(target)
            finally:
                # After a rename it is gone already; after a link or a failure it is garbage.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=tmp_dir)

    def _write_temporary(self, tmp_dir: int, parts: Sequence[Buffer]) -> str:
        """A synced file with the bytes of `parts` in the folder `tmp_dir`; its name."""
        name = f".{secrets.token_hex(16)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=tmp_dir)
        try:
            try:
                size = write_all(fd, parts)
                # Read-only guards against editors, and some filesystems have no modes at all.
                with contextlib.suppress(PermissionError):
                    os.fchmod(fd, 0o444)
                sync_fd(fd)
                info = os.fstat(fd)
                if info.st_size != size:
                    raise StorageError(f"wrote {size:,} bytes and the file has {info.st_size:,}", subject=self.name)
            finally:
                os.close(fd)  # may raise on NFS, and is an error of the write then
            self._sweep_once(tmp_dir, info.st_mtime)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=tmp_dir)
            raise
        return name

    def _publish_new(self, tmp_dir: int, temporary: str, target: int, name: str, key: str) -> None:
        """Give `temporary` its final name if nobody has it: one atomic link.

        Where the filesystem has no hard links (FAT, some network mounts) look and rename under a lock
        instead. That is exact among dvk processes where flock works, and the capability is withdrawn.
        """
        try:
            os.link(temporary, name, src_dir_fd=tmp_dir, dst_dir_fd=target, follow_symlinks=False)
            return
        except FileExistsError:
            # NFS may answer "exists" to the repetition of a link that succeeded: then we are the second name.
            if os.stat(temporary, dir_fd=tmp_dir, follow_symlinks=False).st_nlink == 2:
                return
            raise KeyExists("already there", subject=f"{self.name}/{key}") from None
        except OSError as e:
            if e.errno not in _NO_LINKS:
                raise
        self.capabilities = replace(self.capabilities, create_only=False)
        with self._lock, locked_folder(tmp_dir):
            try:
                os.stat(name, dir_fd=target, follow_symlinks=False)
            except FileNotFoundError:
                os.rename(temporary, name, src_dir_fd=tmp_dir, dst_dir_fd=target)
                return
        raise KeyExists("already there", subject=f"{self.name}/{key}")

    def delete(self, key: str) -> None:
        check_key(key)
        self._check_writable(key)
        folder, _, name = key.rpartition("/")
        with self._lock:
            self._handles.pop(key, None)
        with translate(f"{self.name}/{key}"):
            fd = self._find_folder(folder)
            if fd is None:
                return
            try:
                os.unlink(name, dir_fd=fd)
                sync_fd(fd)
            except FileNotFoundError:
                return
            finally:
                os.close(fd)

    def _check_writable(self, key: str) -> None:
        if self.read_only:
            raise StorageError("opened for reading only", subject=f"{self.name}/{key}")

    def _sweep_once(self, tmp_dir: int, now: float) -> None:
        """Remove what killed writers left behind more than a day ago, once in the life of this object.

        `now` is the time of a file just written there: the clock of that filesystem, which on a network
        mount is not ours.
        """
        with self._lock:
            if self._swept:
                return
            self._swept = True
        with os.scandir(tmp_dir) as entries:
            for entry in entries:
                # Another sweeper may be faster, and another user's garbage is not ours to mind.
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    if (
                        is_temporary(entry.name)
                        and entry.is_file(follow_symlinks=False)
                        and now - entry.stat(follow_symlinks=False).st_mtime > _STALE_S
                    ):
                        os.unlink(entry.name, dir_fd=tmp_dir)

    # -- reading ---------------------------------------------------------------------------------

    def get(self, key: str, *, max_bytes: int) -> bytes:
        check_key(key)
        with translate(f"{self.name}/{key}"):
            file, size = self._open(key)
            if size > max_bytes:
                raise FormatError(
                    f"object of {size:,} bytes where at most {max_bytes:,} make sense",
                    subject=f"{self.name}/{key}",
                )
            return self._read(file, key, 0, size)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        check_key(key)
        check_range(offset, length)
        with translate(f"{self.name}/{key}"):
            file, size = self._open(key)
            if offset + length > size:
                raise Corrupt(f"object ends at byte {size:,}, before {offset + length:,}", subject=f"{self.name}/{key}")
            return self._read(file, key, offset, length)

    def _read(self, file: _OpenFile, key: str, offset: int, length: int) -> bytes:
        with stage(Stage.READ, bytes_=length):
            data = os.pread(file.fd, length, offset)
        if len(data) == length:
            return data
        parts = [data]
        done = len(data)
        while done < length:
            data = os.pread(file.fd, length - done, offset + done)
            if not data:
                raise Corrupt(
                    f"object shrank to {offset + done:,} bytes while it was read",
                    subject=f"{self.name}/{key}",
                )
            parts.append(data)
            done += len(data)
        return b"".join(parts)

    def _open(self, key: str) -> tuple[_OpenFile, int]:
        """An open file and its size; packs stay open, so that a thousand ranges are a thousand preads."""
        keep = key.startswith(_KEPT_PREFIXES)
        if keep:
            with self._lock:
                file = self._handles.get(key)
                if file is not None:
                    self._handles.move_to_end(key)
            if file is not None:
                info = os.fstat(file.fd)
                if info.st_nlink:  # 0: deleted or replaced since, maybe by another process
                    return file, info.st_size
        folder, _, name = key.rpartition("/")
        folder_fd = self._find_folder(folder)
        if folder_fd is None:
            raise self._missing(key)
        try:
            try:
                fd = os.open(name, self._read_flags, dir_fd=folder_fd)
            except PermissionError:  # only the owner of a file may read it unnoticed
                fd = os.open(name, _READ, dir_fd=folder_fd)
        except FileNotFoundError:
            raise self._missing(key) from None
        finally:
            os.close(folder_fd)
        file = _OpenFile(fd)
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            raise self._missing(key)
        if not stat.S_ISREG(info.st_mode):
            raise StorageError("not a regular file", subject=f"{self.name}/{key}")
        if keep:
            with self._lock:
                self._handles[key] = file
                self._handles.move_to_end(key)
                while len(self._handles) > _KEPT_OPEN:
                    self._handles.popitem(last=False)
        return file, info.st_size

    def _missing(self, key: str) -> KeyMissing:
        return KeyMissing("no such object", subject=f"{self.name}/{key}")

    def stat(self, key: str) -> int | None:
        info = self._look(key)
        return info.st_size if info is not None and stat.S_ISREG(info.st_mode) else None

    def times(self, key: str) -> tuple[float, float] | None:
        """When an object was written, and when it was last read or written, by the clock of its filesystem.

        None when there is none. Where reads are not noted (`noatime`) both are the same.
        """
        info = self._look(key)
        return None if info is None else (info.st_mtime, max(info.st_mtime, info.st_atime))

    def _look(self, key: str) -> os.stat_result | None:
        """What lies at a key."""
        check_key(key)
        folder, _, name = key.rpartition("/")
        with translate(f"{self.name}/{key}"):
            fd = self._find_folder(folder)
            if fd is None:
                return None
            try:
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                return None
            finally:
                os.close(fd)
        return info

    def remove_temporaries(self) -> int:
        """Remove what killed writers left behind, however young: only while nobody can be writing. How many bytes."""
        freed = 0
        with translate(f"{self.name}/{_TMP}"):
            fd = self._find_folder(_TMP)
            if fd is None:
                return 0
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        if is_temporary(entry.name) and entry.is_file(follow_symlinks=False):
                            freed += entry.stat(follow_symlinks=False).st_size
                            os.unlink(entry.name, dir_fd=fd)
            finally:
                os.close(fd)
        return freed

    def list(self, prefix: str) -> Iterator[Listed]:
        check_prefix(prefix)
        folder, _, start = prefix.rpartition("/")
        with translate(self.name):
            fd = self._find_folder(folder)
        if fd is None:
            return
        try:
            yield from self._walk(fd, f"{folder}/" if folder else "", start)
        finally:
            os.close(fd)

    def _walk(self, fd: int, path: str, start: str) -> Iterator[Listed]:
        """Regular files below the open `fd` whose names start with `start`; the unreadable raises."""
        with translate(f"{self.name}/{path}"):
            folders = []
            rows = []
            with os.scandir(fd) as entries:
                for entry in entries:
                    key = path + entry.name
                    if not entry.name.startswith(start) or not is_key(key):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    elif entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                            found = entry.stat(follow_symlinks=False)
                            rows.append(Listed(key, found.st_size, found.st_mtime))
        yield from rows
        for name in folders:
            with translate(f"{self.name}/{path}{name}"):
                try:
                    child = os.open(name, OPEN_DIR | os.O_NOFOLLOW, dir_fd=fd)
                except FileNotFoundError:
                    continue
            try:
                yield from self._walk(child, f"{path}{name}/", "")
            finally:
                os.close(child)

    # -- folders ---------------------------------------------------------------------------------

    def _find_folder(self, folder: str) -> int | None:
        """The open folder of that key prefix, or None when it or the root does not exist."""
        try:
            fd = os.open(self.root, OPEN_DIR)
        except FileNotFoundError:
            return None
        for part in folder.split("/") if folder else ():
            try:
                child = os.open(part, OPEN_DIR | os.O_NOFOLLOW, dir_fd=fd)
            except FileNotFoundError:
                return None
            except OSError as e:
                # A file in the place of a folder: no key can lie below it. A link is somebody's doing.
                if e.errno in (errno.ENOTDIR, errno.ELOOP) and stat.S_ISREG(
                    os.stat(part, dir_fd=fd, follow_symlinks=False).st_mode
                ):
                    return None
                raise
            finally:
                os.close(fd)
            fd = child
        return fd

    def _make_folder(self, folder: str) -> int:
        """The open folder of that key prefix, made where missing, each entry durable in its parent."""
        if "" not in self._durable or not os.path.isdir(self.root):
            make_durable_dirs(self.root)
            self._durable.add("")
        fd = os.open(self.root, OPEN_DIR)
        root_mode = None
        path = ""
        for part in folder.split("/") if folder else ():
            path = f"{path}/{part}"
            try:
                made = False
                try:
                    child = os.open(part, OPEN_DIR | os.O_NOFOLLOW, dir_fd=fd)
                except FileNotFoundError:
                    if root_mode is None:
                        info = os.stat(self.root)
                        root_mode = stat.S_IMODE(info.st_mode) & 0o2775 | 0o700
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=fd)
                        made = True
                    child = os.open(part, OPEN_DIR | os.O_NOFOLLOW, dir_fd=fd)
                    if made and root_mode != 0o700:
                        os.fchmod(child, root_mode)
                # Once in each process even for a folder that was there: its maker may not have synced yet.
                if made or path not in self._durable:
                    try:
                        sync_fd(fd)
                    except BaseException:
                        os.close(child)
                        raise
                    self._durable.add(path)
            finally:
                os.close(fd)
            fd = child
        return fd

    def close(self) -> None:
        with self._lock:
            self._handles.clear()
