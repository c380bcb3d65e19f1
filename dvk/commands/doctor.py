"""`dvk doctor`: what could be wrong with this machine and this repository, each with what to do. Offline.

    ok    git         2.47.1, /usr/bin/git
    warn  rules       2 tracked paths are not hidden from Git (a.csv, models): `dvk checkout` hides them
    fail  pointers    models/best.pt.dvk: has unresolved merge conflict markers

A check never raises: what keeps it from being made is its answer. Nothing is changed, but for probes that are removed
at once.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import stat
import time
from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct, field

from dvk import __version__
from dvk.backend.disk import is_temporary
from dvk.backend.locate import library_of, parse_remote_url
from dvk.backend.text import redact
from dvk.commands.hooks import hooks_status
from dvk.commands.repo import Repo
from dvk.errors import DvkError, NotARepository
from dvk.store.names import show
from dvk.workspace.config import FILE_NAME
from dvk.workspace.durable import read_small
from dvk.workspace.git_program import GitProgram
from dvk.workspace.health import has_locks, has_reflinks, nearest_folder
from dvk.workspace.ignore import ATTRIBUTES_LINE, MAX_BYTES, exclude_pattern, excluded
from dvk.workspace.pointer import Pointer
from dvk.workspace.probe import free_bytes
from dvk.workspace.selection import Selection

OK, INFO, WARN, FAIL = "ok", "info", "warn", "fail"

_LITTLE_SPACE = 1_000_000_000
_STALE_S = 24 * 3600
_EXAMPLES = 3
#: what data goes through, and what is only needed for some of the work
_LIBRARIES = ("blake3", "numpy", "pyfastcdc", "xxhash", "zstandard", "pygit2", "fsspec")
_OPTIONAL = {
    "s3fs": "remotes on S3",
    "obstore": "the fast way to S3, and Google and Azure",
    "pyarrow": "`dvk diff` of tables",
    "duckdb": "`dvk diff` of tables",
}


class Check(Struct, frozen=True):
    """One thing that was looked at. `state` is "ok", "info" (good to know), "warn" or "fail"."""

    name: str
    state: str
    message: str
    hint: str = ""


class DoctorResult(Struct):
    """All checks in the order of a walk from the machine to the remotes."""

    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """How many checks failed."""
        return sum(c.state == FAIL for c in self.checks)

    @property
    def warned(self) -> int:
        """How many gave a warning."""
        return sum(c.state == WARN for c in self.checks)


def doctor(path: str | os.PathLike[str] = ".", *, environ: Mapping[str, str] | None = None) -> DoctorResult:
    """Look at the machine and at the repository that `path` lies in, if it lies in one."""
    environ = os.environ if environ is None else environ
    out = DoctorResult()
    out.checks += _machine()
    try:
        repo = Repo(path, environ=environ)
    except NotARepository as error:
        out.checks.append(_git(environ, None))
        out.checks.append(Check("repository", FAIL, str(error), error.hint))
        return out
    except DvkError as error:
        out.checks.append(_git(environ, None))
        out.checks.append(Check("settings", FAIL, str(error), error.hint))
        return out
    with repo:
        out.checks.append(_git(environ, repo.workspace.top))
        for check in (_repository, _settings, _pointers, _rules, _attributes, _hooks, _selection, _store, _left):
            out.checks += _attempt(check, repo)
        for check in (_locks, _reflinks, _space, _remotes):
            out.checks += _attempt(check, repo)
    return out


def _attempt(check: Callable[[Repo], Iterator[Check]], repo: Repo) -> list[Check]:
    """The answers of a check, or that it could not be made."""
    name = check.__name__.strip("_")
    done: list[Check] = []
    try:
        for found in check(repo):
            done.append(found)
    except DvkError as error:
        done.append(Check(name, FAIL, str(error), error.hint))
    except OSError as error:
        done.append(Check(name, WARN, f"cannot be checked: {error.strerror or error}"))
    return done


# ---------------------------------------------------------------- the machine


def _machine() -> Iterator[Check]:
    yield Check(
        "dvk", OK, f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    found, missing = [], []
    for name in _LIBRARIES:
        version = _version(name)
        if version:
            found.append(f"{name} {version}")
        else:
            missing.append(name)
    hint = "`pip install --force-reinstall dvk` brings them" if missing else ""
    text = ", ".join(found) + (f"; missing: {', '.join(missing)}" if missing else "")
    yield Check("libraries", FAIL if missing else OK, text, hint)
    absent = {name: what for name, what in _OPTIONAL.items() if not _version(name)}
    if absent:
        yield Check("extras", INFO, ", ".join(f"no {name} ({what})" for name, what in absent.items()))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git(environ: Mapping[str, str], top: bytes | None) -> Check:
    program = GitProgram.find(environ, outside=top)
    if program is None:
        return Check(
            "git",
            WARN,
            "the git program is not on PATH; `fetch`, `pull`, `get`, `cat` and `ls` work without it",
            "install git to add, commit and push",
        )
    done = program.run(["--version"], cwd=top or b"/")
    if not done.ok:
        return Check("git", FAIL, f"{program.path} does not run: {show(done.err.strip()[:200])}", "reinstall git")
    words = done.out.decode("ascii", "replace").split()
    return Check("git", OK, f"{words[2] if len(words) > 2 else 'unknown version'}, {program.path}")


# ---------------------------------------------------------------- the repository


def _repository(repo: Repo) -> Iterator[Check]:
    ws = repo.workspace
    if ws.git is None:
        yield Check("repository", INFO, f"{show(ws.top)}: a plain folder without Git; it has no history")
        return
    kind = "a work tree" if ws.git.git_dir == ws.git.common_dir else "a linked worktree"
    odd = f", {ws.git.object_format} objects" if ws.git.object_format != "sha1" else ""
    yield Check("repository", OK, f"{show(ws.top)}: {kind}{odd}")


def _settings(repo: Repo) -> Iterator[Check]:
    ws = repo.workspace
    if os.path.exists(os.path.join(ws.top, FILE_NAME)):
        yield Check("settings", OK, "dvk.toml and your own settings are readable")
    else:
        yield Check("settings", INFO, "there is no dvk.toml", "`dvk init` writes one, which pins how files are cut")


def _pointers(repo: Repo) -> Iterator[Check]:
    good = 0
    for _path, pointer in repo.workspace.worktree_pointers():
        if isinstance(pointer, Pointer):
            good += 1
        else:
            yield Check("pointers", FAIL, str(pointer), pointer.hint)
    yield Check("pointers", OK, f"{_count(good, 'tracked path')}")


def _tracked(repo: Repo) -> list[bytes]:
    return [path for path, _ in repo.workspace.worktree_pointers()]


def _rules(repo: Repo) -> Iterator[Check]:
    git = repo.workspace.git
    if git is None:
        return
    hidden = excluded(git.common_dir)
    open_ = [path for path in _tracked(repo) if exclude_pattern(path) not in hidden]
    if not open_:
        yield Check(
            "rules", OK, "all tracked data is hidden from Git" if _tracked(repo) else "nothing to hide from Git yet"
        )
        return
    # A rule of the user's own may do the same.
    seen = sorted(set(open_) - set(git.is_ignored(open_))) if git.has_program else open_
    if seen:
        yield Check(
            "rules",
            WARN,
            f"{_count(len(seen), 'tracked path')} not hidden from Git ({_some(seen)}): `git add` would take them in",
            "`dvk checkout` hides them",
        )
    else:
        yield Check("rules", OK, "all tracked data is hidden from Git, some by your own ignore rules")


def _attributes(repo: Repo) -> Iterator[Check]:
    ws = repo.workspace
    if ws.git is None:
        return
    text = read_small(None, os.path.join(ws.top, b".gitattributes"), max_bytes=MAX_BYTES, subject=".gitattributes")
    words = ATTRIBUTES_LINE.split()
    if any(line.split() == words for line in (text or b"").splitlines()):
        yield Check("attributes", OK, ".gitattributes keeps Git from converting pointers")
    else:
        yield Check(
            "attributes",
            WARN if _tracked(repo) else INFO,
            f".gitattributes lacks the line `{ATTRIBUTES_LINE.decode()}`: line-end settings may break pointers",
            "`dvk init` writes it",
        )


def _hooks(repo: Repo) -> Iterator[Check]:
    git = repo.workspace.git
    if git is None or not git.has_program:
        return
    folder = git.git_path("hooks")
    why = " (core.hooksPath)" if git.config_get("core.hooksPath") else ""
    found = hooks_status(repo)
    there = [h.name for h in found.hooks if h.place != "none"]
    old = [h.name for h in found.hooks if not h.current]
    if not there:
        yield Check("hooks", INFO, f"Git runs those in {show(folder)}{why}; none is dvk's", "`dvk hooks install`")
    elif old:
        yield Check("hooks", WARN, f"of another version of dvk: {', '.join(old)}", "`dvk hooks install` renews them")
    else:
        yield Check("hooks", OK, f"{', '.join(there)} in {show(folder)}{why}")
    if there and not os.access(found.program, os.X_OK):
        yield Check("hooks", WARN, f"they run {found.program or 'dvk'}, which is not there", "`dvk hooks install`")


def _selection(repo: Repo) -> Iterator[Check]:
    selection = Selection.load(repo.state)
    partial = [path for path, selected in selection.folders.items() if not selected.everything]
    more = f"; of {_count(len(partial), 'folder')} a part was asked for ({_some(partial)})" if partial else ""
    yield Check("selection", OK, f"the record of what this worktree asked for is readable{more}")


# ---------------------------------------------------------------- the store


def _store(repo: Repo) -> Iterator[Check]:
    folder = show(repo.workspace.store_dir)
    for other in repo.borrowed.stores:
        yield Check("alternates", OK, f"data is read from {show(other)} as well")
    for error in repo.borrowed.problems:
        yield Check("alternates", WARN, f"not read: {error}", error.hint)
    if repo.store.describe() is None:
        yield Check("store", INFO, f"{folder}: nothing is stored yet")
        return
    repo.store.tolerate_unreadable()
    repo.store.refresh()
    packs = len(repo.store.list_packs())
    damaged = repo.store.damaged
    if damaged:
        yield Check(
            "store",
            FAIL,
            f"{folder}: {_count(len(damaged), 'pack')} of {packs} cannot be read ({damaged[0]})",
            "`dvk verify` says what that costs, `dvk repair` mends it",
        )
    else:
        yield Check("store", OK, f"{folder}: {_count(packs, 'pack')}, index readable")


def _left(repo: Repo) -> Iterator[Check]:
    folder = os.path.join(repo.workspace.store_dir, b"tmp")
    count = size = 0
    limit = time.time() - _STALE_S
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                if is_temporary(os.fsdecode(entry.name)) and stat.S_ISREG(info.st_mode) and info.st_mtime < limit:
                    count, size = count + 1, size + info.st_size
    except FileNotFoundError:
        return
    if count:
        yield Check(
            "leftovers",
            INFO,
            f"{_count(count, 'file')} of killed runs, {_mega(size)}",
            "the next verb that writes to the store removes them",
        )


def _locks(repo: Repo) -> Iterator[Check]:
    for what, folder in _places(repo):
        if not has_locks(folder):
            yield Check(
                "locks",
                WARN,
                f"{show(folder)} ({what}) has no file locks",
                "do not run two commands at once there, or keep the store elsewhere (`dvk config store.path DIR`)",
            )
            return
    yield Check("locks", OK, "file locks work")


def _reflinks(repo: Repo) -> Iterator[Check]:
    can = has_reflinks(nearest_folder(repo.workspace.store_dir))
    yield Check("reflinks", INFO, "copies can share blocks" if can else "copies take space of their own (no reflinks)")


def _space(repo: Repo) -> Iterator[Check]:
    seen: set[int] = set()
    for what, folder in [("work tree", repo.workspace.top), *_places(repo)]:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            device = os.fstat(fd).st_dev
            if device in seen:
                continue
            seen.add(device)
            free = free_bytes(fd)
        finally:
            os.close(fd)
        little = free < _LITTLE_SPACE
        hint = "`dvk du` shows what the store takes" if little else ""
        yield Check("space", WARN if little else OK, f"{_mega(free)} free where the {what} is", hint)


def _places(repo: Repo) -> list[tuple[str, bytes]]:
    """Where dvk writes, as far as it exists."""
    return [
        ("store", nearest_folder(repo.workspace.store_dir)),
        ("state of the repository", nearest_folder(repo.workspace.common_dir)),
    ]


# ---------------------------------------------------------------- remotes


def _remotes(repo: Repo) -> Iterator[Check]:
    config = repo.workspace.config
    remotes = config.remotes()
    if not remotes:
        yield Check("remotes", INFO, "none is configured", "`dvk remote add origin URL` says where data goes")
        return
    default = config.default_remote()
    if default is not None and default not in remotes:
        yield Check(
            "remotes", FAIL, f"the default remote is `{default}`, and there is none of this name", "`dvk remote list`"
        )
    for name, remote in remotes.items():
        mark = ", the default" if name == default else ""
        try:
            url = parse_remote_url(remote.url)
        except DvkError as error:
            yield Check("remotes", FAIL, f"{name}: {error}", error.hint)
            continue
        if url.scheme == "s3" and not _version("s3fs"):
            yield Check("remotes", FAIL, f"{name}: {redact(remote.url)} needs s3fs", "`pip install s3fs`")
            continue
        through = ""
        if not url.is_local:
            try:
                library, why_not_fast = library_of(url, settings=remote.settings, environ=repo.environ)
            except DvkError as error:
                yield Check("remotes", FAIL, f"{name}: {error}", error.hint)
                continue
            through = f", through {library}" + (f", not obstore: {why_not_fast}" if why_not_fast else "")
        yield Check("remotes", OK, f"{name}: {redact(remote.url)} (from {remote.origin.place}{mark}{through})")


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def _some(paths: list[bytes]) -> str:
    return ", ".join(show(p) for p in paths[:_EXAMPLES]) + (", ..." if len(paths) > _EXAMPLES else "")


def _mega(n: int) -> str:
    return f"{n / 1e9:,.1f} GB" if n >= 1e9 else f"{n / 1e6:,.0f} MB" if n >= 1e6 else f"{n:,} bytes"
