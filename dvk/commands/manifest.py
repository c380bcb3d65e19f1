"""`dvk manifest`: what a version of the repository holds, or what a job read, for whoever has to reproduce it.

    manifest(repo, "v1.0")                        every tracked path with its id and size; no data, no network
    manifest(repo, "v1.0", [b"images/val"]).key   changes exactly when the data of these paths does
    read_manifest("job.jsonl")                    what verbs noted there under DVK_MANIFEST

The key is for caches: equal data has an equal key, whatever the paths are called and whichever commit it is.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Sequence

import numpy as np
from blake3 import blake3
from msgspec import Struct, field
from msgspec.structs import replace

from dvk.backend.disk import storage_error
from dvk.commands.checkout import tracked
from dvk.commands.reader import Reader, from_here, own_pointer
from dvk.commands.repo import Repo
from dvk.commands.spec import Spec, Target, Version, find_target, near_misses
from dvk.errors import DvkError, FormatError, NotFound, one_or_many
from dvk.events import OnEvent, ignore
from dvk.store.listing import Kind
from dvk.store.names import show
from dvk.workspace.pointer import Pointer

VERSION = 1
MAX_BYTES = 256 << 20
_KEY_CONTEXT = "dvk cache key 1"
_HEX = re.compile(r"[0-9a-f]{64}")


class Held(Struct, frozen=True):
    """One path. `id` of a part of a tracked folder is what it would have as a tracked folder of its own."""

    path: bytes
    kind: str  #: "file", "dir", or with `recursive` "link"
    id: bytes | None  #: None for a link
    size: int
    files: int | None = None  #: of a folder
    exec: bool = False
    parts: tuple[bytes, ...] = ()  #: only of what a job read: the parts of a tracked folder that it asked for
    repo: str = ""  #: only of what a job read: the other repository that it is from
    commit: str = ""  #: only of what a job read: the commit, where one was named


class Manifest(Struct):
    """The answer."""

    manifest: int = VERSION  #: of this form
    rev: str = ""  #: as given; empty: the pointers in the work tree
    commit: str = ""
    key: str = ""  #: changes exactly when the data does
    size: int = 0  #: of all paths together
    files: int = 0
    paths: list[Held] = field(default_factory=list)


def manifest(
    repo: Repo,
    rev: str | None = None,
    paths: Sequence[bytes | str] = (),
    *,
    recursive: bool = False,
    remote: str | None = None,
    on_event: OnEvent = ignore,
) -> Manifest:
    """What a revision (by default: the pointers in the work tree) holds at `paths`, or everywhere.

    Args:
        paths: tracked paths, folders above them, parts of tracked folders. Parts need the listing of the folder,
            which is read from a remote if it is not here.
        recursive: every file of tracked folders, in place of the folders.

    Raises:
        NotFound: there is no such revision, or nothing is tracked at a path. FormatError: a pointer cannot be read;
        a manifest is whole or an error.
    """
    version = Version(repo, rev)
    whole: list[Held] = []
    rows: list[Held] = []
    with Reader(repo, remote=remote, on_event=on_event) as reader:
        for target in _targets(repo, version, [repo.workspace.locate(p, cwd=repo.cwd) for p in paths]):
            if target.inner:
                row = _row(target.full, own_pointer(target, from_here(reader.entries(target), target.inner)))
            else:
                row = _row(target.path, target.pointer)
            whole.append(row)
            rows += _files(reader, target) if recursive and target.pointer.is_dir else [row]
    # The files of a folder are not all of it: there are links, executable bits, empty folders.
    return replace(_manifest(rows, rev=rev or "", commit=version.commit), key=cache_key(whole))


def _targets(repo: Repo, version: Version, wanted: Sequence[bytes]) -> list[Target]:
    """What the paths mean at a version, each once, by path."""
    found: dict[bytes, Target] = {}
    problems: list[DvkError] = []
    if version.rev is None and wanted:
        tracked(repo, wanted, problems)  # its errors say what a path is instead
    for path in wanted or [b""]:
        hits = False
        for name, pointer in version.below(path):
            hits = True
            if isinstance(pointer, DvkError):
                problems.append(pointer)
            else:
                found[name] = Target(name, b"", pointer, version.rev, version.commit)
        if not hits and path:
            shown = show(path)
            if version.owner(path) is None:
                raise NotFound(
                    f"dvk tracks nothing there{version.words}",
                    subject=shown,
                    hint=near_misses(path, version.names()) or "`dvk ls` lists what is tracked",
                )
            target = find_target(repo, _at_top(repo, version, path))
            found[target.full] = target
    if problems:
        raise one_or_many("some pointers cannot be read", problems)
    return [found[name] for name in sorted(found)]


def _at_top(repo: Repo, version: Version, path: bytes) -> Spec:
    if version.rev is None:
        return Spec(show(path), None, os.path.join(repo.workspace.top, path))
    return Spec(show(path), version.rev, path)


def _row(path: bytes, pointer: Pointer) -> Held:
    return Held(path, pointer.kind, pointer.id, pointer.size, pointer.files, pointer.exec)


def _files(reader: Reader, target: Target) -> list[Held]:
    entries = reader.entries(target)
    blob = np.ascontiguousarray(entries.ids).tobytes()
    out = []
    rows = zip(entries.names, entries.kinds.tolist(), entries.sizes.tolist(), strict=True)
    for i, (name, kind, size) in enumerate(rows):
        if kind == Kind.EMPTYDIR:
            continue
        link = kind == Kind.LINK
        path = target.path + b"/" + name
        an_id = None if link else blob[i * 32 : i * 32 + 32]
        out.append(Held(path, "link" if link else "file", an_id, 0 if link else size, exec=kind == Kind.EXEC))
    return out


def _manifest(rows: Sequence[Held], *, rev: str = "", commit: str = "") -> Manifest:
    files = sum(1 if r.files is None else r.files for r in rows if r.kind != "link")
    return Manifest(VERSION, rev, commit, cache_key(rows), sum(r.size for r in rows), files, list(rows))


def cache_key(rows: Iterable[Held]) -> str:
    """32 hexadecimal digits that depend on what the data is and on nothing else."""
    lines = sorted({f"{r.kind} {r.id.hex()} {r.size} {' '.join(p.hex() for p in r.parts)}\n" for r in rows if r.id})
    return blake3("".join(lines).encode(), derive_key_context=_KEY_CONTEXT).hexdigest()[:32]


def read_manifest(file: bytes | str) -> Manifest:
    """What verbs noted in a file under `DVK_MANIFEST`: each version that was read once, by path.

    Raises:
        NotFound: the file does not exist. FormatError: it holds something else.
    """
    subject = show(os.fsencode(file))
    try:
        with open(file, "rb") as opened:
            text = opened.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFound(
            "there is no such file", subject=subject, hint="set DVK_MANIFEST to it before the commands of a job"
        ) from error
    except OSError as error:
        raise storage_error(error, subject) from error
    if len(text) > MAX_BYTES:
        raise FormatError(f"has more than {MAX_BYTES:,} bytes", subject=subject)
    rows: dict[tuple[object, ...], Held] = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = _parse(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"line {number} is none that dvk wrote", subject=subject) from error
        rows.setdefault((row.repo, row.path, row.parts, row.id), row)
    return _manifest(sorted(rows.values(), key=lambda r: (r.repo, r.path, r.parts, r.id or b"")))


def _parse(row: dict[str, object]) -> Held:
    if row["kind"] not in ("file", "dir") or not _HEX.fullmatch(str(row["id"])):
        raise ValueError
    size, files, parts = row["size"], row["files"], row["parts"]
    if not isinstance(size, int) or not isinstance(files, int | None) or not isinstance(parts, list):
        raise TypeError
    held = Held(_name(row["path"]), str(row["kind"]), bytes.fromhex(str(row["id"])), size, files)
    return replace(
        held, parts=tuple(_name(p) for p in parts), repo=str(row.get("repo", "")), commit=str(row.get("commit", ""))
    )


def _name(found: object) -> bytes:
    """A path as `--json` writes it."""
    if isinstance(found, dict):
        return base64.b64decode(str(found["bytes_b64"]), validate=True)
    if not isinstance(found, str):
        raise TypeError
    return found.encode("utf-8")
