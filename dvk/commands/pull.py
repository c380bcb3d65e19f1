"""`dvk fetch` brings data into the local store, `dvk pull` brings it into the workspace as well.

A fresh clone pulls without a listing and without an index of the remote: each pointer names an id, each id has a
locator. What one path lacks does not keep the others from arriving.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from msgspec import Struct, field

from dvk.commands.checkout import tracked
from dvk.commands.earlier import fetch_by_earlier
from dvk.commands.materializer import CheckoutResult, Materializer, Target
from dvk.commands.repo import Remote, Repo, root_of
from dvk.commands.sources import Sources
from dvk.commands.tracked import file_entries
from dvk.errors import DataMissing, DvkError, FormatError, NotFound, RemoteError, StorageError
from dvk.events import Note, OnEvent, ignore
from dvk.ids import PageId
from dvk.store.content import ContentSource
from dvk.store.fetch import Wanted, is_here
from dvk.store.fetch import fetch as fetch_roots
from dvk.store.listing import Entries
from dvk.store.names import show
from dvk.store.resolve import RemoteContent, Resolver
from dvk.store.roots import ConfirmedRoots, is_live
from dvk.store.unproven import Unproven
from dvk.store.writer import Writer
from dvk.workspace.pointer import Pointer
from dvk.workspace.selection import Selected, Selection


class FetchResult(Struct):
    """What a fetch did."""

    remote: str = ""  #: the remote that was asked; empty when everything was here already
    url: str = ""
    paths: int = 0  #: tracked paths that were looked at
    fetched: int = 0  #: of these, how many needed the remote and arrived
    new_bytes: int = 0  #: decoded bytes that were not here before
    moved_bytes: int = 0  #: bytes read from the remote
    requests: int = 0  #: how often remotes were asked for anything
    failures: list[DvkError] = field(default_factory=list)
    dry_run: bool = False


class PullResult(Struct):
    """What a pull did: the transfer and the checkout."""

    fetch: FetchResult
    checkout: CheckoutResult
    not_present: int = 0  #: files of folders that stay on the remote, since nobody asked for them
    failures: list[DvkError] = field(default_factory=list)


def fetch(
    repo: Repo,
    paths: Sequence[bytes | str] = (),
    *,
    remote: str | None = None,
    rev: str | None = None,
    dry_run: bool = False,
    on_event: OnEvent = ignore,
) -> FetchResult:
    """Bring the data that pointers name into the local store; the workspace is not touched.

    Args:
        paths: tracked paths, folders above them, or parts of tracked folders; everything selected by default.
        rev: the pointers of that revision instead of those in the work tree.
    """
    if remote is not None:
        repo.remote_config(remote)  # a name that does not exist is an error also where nothing is to be fetched
    out = FetchResult(dry_run=dry_run)
    wanted = [repo.workspace.locate(p, cwd=repo.cwd) for p in paths]
    targets = tracked(repo, wanted, out.failures) if rev is None else _at(repo, rev, wanted, out.failures)
    with repo.writing():
        fetch_targets(repo, targets, out, remote, on_event)
    return out


def _at(repo: Repo, rev: str, wanted: Sequence[bytes], failures: list[DvkError]) -> list[Target]:
    found: list[Target] = []
    for path, pointer in repo.workspace.pointers_at(repo.workspace.resolve(rev), under=wanted):
        if isinstance(pointer, DvkError):
            failures.append(pointer)
        else:
            found.append((path, (), pointer))
    if wanted and not found:
        raise NotFound(f"nothing is tracked there at {rev}", subject=show(wanted[0]))
    return found


def fetch_targets(
    repo: Repo,
    targets: Sequence[Target],
    out: FetchResult,
    remote: str | None,
    on_event: OnEvent,
    unproven: Unproven[Wanted] | None = None,
) -> None:
    """Fetch what targets lack from the remotes in turn into the store; what none of them has goes to `out.failures`.

    Args:
        unproven: see `dvk.store.fetch.fetch`.
    """
    selection = Selection.load(repo.state)
    asked = [
        Wanted(root_of(pointer), under or _selected(selection, path, pointer), show(path))
        for path, under, pointer in targets
    ]
    out.paths = max(out.paths, len(asked))
    missing = [w for w in asked if not is_here(repo.store, w)]
    if not missing:
        return
    try:
        sources = Sources(repo, remote, on_event=on_event)
    except NotFound as error:
        if remote is not None:
            raise
        out.failures += [DataMissing("its data is not here", subject=w.name, hint=error.hint) for w in missing]
        return
    failed: list[tuple[Wanted, DvkError]] = []
    damaged: dict[Wanted, DvkError] = {}
    try:
        for source in sources:
            with sources.asking(source):
                done = fetch_roots(
                    source.store, repo.store, missing, unproven=unproven, on_event=on_event, dry_run=out.dry_run
                )
                repo.remember_store(source)
                _confirm(repo, source, done.records)
                out.url = out.url or source.url
                out.fetched += done.roots
                out.new_bytes += done.new_bytes
                out.moved_bytes += done.moved_bytes
                failed = done.failures
                if not out.dry_run:
                    more, failed = fetch_by_earlier(repo, source, failed, on_event=on_event)
                    _confirm(repo, source, more.records)
                    out.fetched += more.roots
                    out.new_bytes += more.new_bytes
                    out.moved_bytes += more.moved_bytes
                # What is damaged on one remote may be just missing on the next, which is no better news.
                damaged |= {w: e for w, e in failed if isinstance(e, FormatError) and w not in damaged}
                failed = [(w, damaged.get(w, e)) for w, e in failed]
                missing = [w for w, _ in failed]
            if not missing:
                break
        sources.check()
    finally:
        sources.close()
    out.remote = ", ".join(sources.asked)
    out.requests += sources.requests
    by_name = {show(path): (path, pointer) for path, _, pointer in targets}
    out.failures += [_failure(repo, sources, w, error, *by_name[w.name]) for w, error in failed]


def _selected(selection: Selection, path: bytes, pointer: Pointer) -> tuple[bytes, ...]:
    found = selection.get(path) if pointer.is_dir else None
    return (b"",) if found is None or found.prefixes is None else found.prefixes


def _confirm(repo: Repo, source: Remote, records: dict[str, bytes]) -> None:
    """What came from a remote under a live record is pushed already: `status` shall know."""
    found = source.store.describe()
    if found is None or not records:
        return
    try:
        live = {rid for rid in set(records.values()) if is_live(source.store.backend, rid)}
    except RemoteError:
        return  # readers need not be allowed to list; `push` would ask again anyway
    ConfirmedRoots(repo.remotes_state, found.store).add({k: rid for k, rid in records.items() if rid in live})


def _failure(repo: Repo, sources: Sources, wanted: Wanted, error: DvkError, path: bytes, pointer: Pointer) -> DvkError:
    """The error for a path that did not arrive, with who could help."""
    if isinstance(error, DataMissing):
        return nowhere(repo, path, pointer, sources.asked, apology=sources.apology)
    where = f" ({error.subject})" if error.subject else ""
    return type(error)(f"{error.message}{where}", subject=wanted.name, hint=error.hint)


def nowhere(
    repo: Repo, path: bytes, pointer: Pointer, remotes: Sequence[str], *, rev: str = "HEAD", apology: str = ""
) -> DataMissing:
    """The error for data that is neither here nor on the remotes that were asked: who can bring it, and how.

    Args:
        rev: where the pointer was found, so that the commit is named which brought this version.
        apology: which remotes could not be asked.
    """
    where = f"on {', '.join(remotes)}" if remotes else "on any remote"
    message = f"({pointer.id.hex()[:12]}, {_size(pointer.size)}) is neither here nor {where}{apology}"
    hint = "whoever has this version can `dvk push` it"
    git = repo.workspace.git
    if git is not None and git.has_program and git.head() is not None:
        for commit in git.history(path + b".dvk", rev):
            when = f" on {commit.date:%Y-%m-%d}" if commit.date else ""
            message += f"; its pointer came with commit {commit.id[:9]} by {commit.author}{when}"
            hint = f"ask its author for `dvk push --rev {commit.id[:9]}`"
            break
    return DataMissing(message, subject=show(path), hint=hint)


def _size(n: int) -> str:
    """Bytes for people, in the units of storage makers."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.3g} {unit}"
    return f"{n} bytes"


def pull(
    repo: Repo,
    paths: Sequence[bytes | str] = (),
    *,
    remote: str | None = None,
    store: bool = True,
    force: bool = False,
    on_event: OnEvent = ignore,
) -> PullResult:
    """Bring data into the workspace: all that is tracked and selected, or what is named.

    Args:
        store: keep what is fetched in the local store too; without it verified bytes go straight to the workspace.
        force: replace local content that no store holds.
    """
    if remote is not None:
        repo.remote_config(remote)
    fetched = FetchResult()
    sources: Sources | None = None  # read from until the end, where nothing is kept
    wanted = [repo.workspace.locate(p, cwd=repo.cwd) for p in paths]
    targets = tracked(repo, wanted, fetched.failures)
    if wanted:
        # Naming a folder asks for all of it, whatever was asked for before.
        targets = [(p, under or ((b"",) if x.is_dir and p in wanted else ()), x) for p, under, x in targets]
    with repo.writing():
        unproven: Unproven[Wanted] = Unproven(repo.store)
        if store:
            fetch_targets(repo, targets, fetched, remote, on_event, unproven)
        with repo.changing_files():
            if store:
                run = Materializer(repo, force=force, on_event=on_event, unproven=unproven)
            else:
                sources = Sources(repo, remote, on_event=on_event)
                run = _direct(repo, targets, fetched, sources, force=force, on_event=on_event)
            run.begin(targets)
            failed = {e.subject for e in fetched.failures}
            for path, under, pointer in targets:
                if show(path) not in failed:
                    run.one(path, pointer, under)
            again = _settle(repo, unproven, targets, fetched)
            if again:
                run.begin_again([path for path, _, _ in again])
                fetch_targets(repo, again, fetched, remote, on_event)
                failed = {e.subject for e in fetched.failures}
                for path, under, pointer in again:
                    if show(path) not in failed:
                        run.one(path, pointer, under)
            if not wanted and store:
                run.remove_left_behind()
            result = run.finish()
            if sources is not None:
                fetched.requests += sources.requests
                sources.close()
    return PullResult(fetched, result, result.not_present, [*fetched.failures, *result.failures])


def _settle(repo: Repo, unproven: Unproven[Wanted], targets: Sequence[Target], out: FetchResult) -> list[Target]:
    """Keep what the checkout proved and prove the rest. Returns the targets of which something was disproven.

    These have to be fetched again: it says what is wrong, and another remote may have the right thing.
    """
    if not len(unproven):
        return []
    with Writer(repo.store) as writer:
        names = {wanted.name for wanted, _ in unproven.settle(writer)} - {e.subject for e in out.failures}
    out.fetched -= len(names)
    again = [target for target in targets if show(target[0]) in names]
    # Noted before, so that a killed run knows what it put there to be had again; and not by what is there now.
    stores = {repo.known_store_id(name) for name in repo.workspace.config.remotes()} - {""}
    for store in stores if again else ():
        ConfirmedRoots(repo.remotes_state, store).forget(root_of(pointer).text for _, _, pointer in again)
    return again


def _keep_pages(repo: Repo, pages: list[tuple[PageId, bytes]], on_event: OnEvent) -> None:
    """The list of a folder's files is kept even without a store for data: `status` needs it, and it is small."""
    try:
        with Writer(repo.store) as writer:
            for name, data in pages:
                writer.add_page(name, data)
            writer.flush()
    except StorageError as error:
        on_event(Note(f"the list of files could not be kept, so `dvk status` will not know it ({error})"))


def fetch_lists(
    repo: Repo, path: bytes, versions: Sequence[Pointer], remote: str | None, *, on_event: OnEvent = ignore
) -> None:
    """Bring the lists of files of some versions of a folder into the local store, and none of the files.

    Raises:
        DataMissing: no remote has one of them. NotFound: no remote is configured. RemoteError: none answers.
    """
    left: list[Target] = [(path, (b"",), p) for p in versions]
    sources = Sources(repo, remote, on_event=on_event)
    try:
        for source in sources:
            with sources.asking(source):
                missing = []
                for target in left:  # one by one, since what is found is kept by path
                    missing += _resolve(repo, source, [target], {}, {}, on_event)[0]
                left = missing
            if not left:
                return
        sources.check()
    finally:
        sources.close()
    raise nowhere(repo, path, left[0][2], sources.asked, apology=sources.apology)


def _direct(
    repo: Repo,
    targets: Sequence[Target],
    out: FetchResult,
    sources: Sources,
    *,
    force: bool,
    on_event: OnEvent,
) -> Materializer:
    """A materializer that reads the remote; what a folder consists of is resolved here, once."""
    out.paths = len(targets)
    contents: dict[bytes, ContentSource] = {}
    listings: dict[bytes, Entries] = {}
    found_on: dict[bytes, Remote] = {}
    failed: dict[bytes, DvkError] = {}
    left = list(targets)
    for source in sources:
        with sources.asking(source):
            left, failed = _resolve(repo, source, left, contents, listings, on_event)
            found_on |= {path: source for path in contents if path not in found_on}
            out.url = out.url or source.url
        if not left:
            break
    sources.check()
    out.remote, out.fetched = ", ".join(sources.asked), len(contents)
    for path, _, pointer in left:
        error = failed.get(path, DataMissing(""))
        if isinstance(error, DataMissing):
            out.failures.append(nowhere(repo, path, pointer, sources.asked, apology=sources.apology))
        else:
            out.failures.append(type(error)(error.message, subject=show(path), hint=error.hint))

    def entries_of(path: bytes, pointer: Pointer, _scope: Selected) -> Entries:
        return listings[path] if pointer.is_dir else file_entries(pointer)

    wanted = {path: (under, pointer) for path, under, pointer in targets}

    def look_again(path: bytes, why: DvkError) -> ContentSource | None:
        """By the footers of its packs, where what a locator led to is gone."""
        under, pointer = wanted[path]
        content = RemoteContent(found_on[path].store)
        with (
            Resolver(found_on[path].store, on_event=on_event) as resolver,
            contextlib.suppress(DataMissing, FormatError),
        ):
            for prefix in under or _selected(Selection.load(repo.state), path, pointer):
                for part in resolver.search(root_of(pointer), under=prefix, why=why):
                    content.add(part)
        return content if len(content) else None

    return Materializer(
        repo, force=force, on_event=on_event, entries_of=entries_of, contents=contents, look_again=look_again
    )


def _resolve(
    repo: Repo,
    source: Remote,
    targets: Sequence[Target],
    contents: dict[bytes, ContentSource],
    listings: dict[bytes, Entries],
    on_event: OnEvent,
) -> tuple[list[Target], dict[bytes, DvkError]]:
    """Find out what targets consist of on one remote; those that it could not tell, and why."""
    selection = Selection.load(repo.state)
    left: list[Target] = []
    failed: dict[bytes, DvkError] = {}
    content = RemoteContent(source.store)
    with Resolver(source.store, on_event=on_event) as resolver:
        for path, under, pointer in targets:
            parts = []
            pages: list[tuple[PageId, bytes]] = []
            try:
                for prefix in under or _selected(selection, path, pointer):
                    for part in resolver.resolve(root_of(pointer), under=prefix):
                        content.add(part)
                        parts.append(part.entries)
                        pages += part.pages
            except (DataMissing, FormatError) as error:
                left.append((path, under, pointer))
                failed[path] = error
                continue
            if pointer.is_dir:
                listings[path] = Entries.join(parts)
                _keep_pages(repo, pages, on_event)
            contents[path] = content
    repo.remember_store(source)
    _confirm(repo, source, resolver.records)
    return left, failed
