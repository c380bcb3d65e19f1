"""Parts of a folder whose present version nobody has pushed yet, by way of the versions before it.

A clone pulled `val`, added one file to it, and now wants `train`. The folder's new version is on no remote, and all of
`train` is, as part of the version that history names before. Its pages and chunks are the same ones; so what lies at
the same place in an earlier version is fetched, and then the present one is looked at again. What has another name
since is looked for by its content.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from dvk.commands.repo import Remote, Repo
from dvk.commands.versions import head_history
from dvk.errors import DataMissing, DvkError, FormatError
from dvk.events import OnEvent, ignore
from dvk.ids import PageId
from dvk.store.fetch import Fetched, Wanted, fetch, is_here
from dvk.store.names import show
from dvk.store.pages import iter_entries
from dvk.store.resolve import Resolver
from dvk.store.root import FOLDER, Root
from dvk.workspace.selection import normal_prefixes

_NAMES = 64  # files that are asked for one by one
_VERSIONS = 4  # how far back to look; an edit that was not pushed is rarely older


def fetch_by_earlier(
    repo: Repo,
    source: Remote,
    failures: Sequence[tuple[Wanted, DvkError]],
    *,
    on_event: OnEvent = ignore,
) -> tuple[Fetched, list[tuple[Wanted, DvkError]]]:
    """Try again what a remote does not have of folders.

    Returns what was fetched (its `roots` counts those that are here now), and the failures that remain.

    Raises:
        RemoteError, StorageError: as `fetch`.
    """
    out = Fetched()
    left: list[tuple[Wanted, DvkError]] = []
    earlier = _earlier(repo, source) if any(_may_help(w, e) for w, e in failures) else {}
    for wanted, error in failures:
        roots = earlier.get(wanted.name, []) if _may_help(wanted, error) else []
        if not _bring(repo, source, wanted, roots, out, on_event):
            left.append((wanted, error))
    return out, left


def _may_help(wanted: Wanted, error: DvkError) -> bool:
    return wanted.root.kind == FOLDER and isinstance(error, DataMissing)


def _bring(
    repo: Repo, source: Remote, wanted: Wanted, earlier: Sequence[Root], out: Fetched, on_event: OnEvent
) -> bool:
    for root in [r for r in earlier if r != wanted.root][:_VERSIONS]:
        for find in (_by_name, _by_content):
            names = find(repo, source, wanted, root)
            if not names:
                continue
            done = fetch(source.store, repo.store, [Wanted(root, names, wanted.name)], on_event=on_event)
            out.new_bytes += done.new_bytes
            out.moved_bytes += done.moved_bytes
            out.records |= done.records
            if is_here(repo.store, wanted):
                out.roots += 1
                return True
    return False


def _by_name(_repo: Repo, _source: Remote, wanted: Wanted, _earlier: Root) -> tuple[bytes, ...]:
    """Where an earlier version has what is wanted: as a rule in the same place."""
    return wanted.under


def _by_content(repo: Repo, source: Remote, wanted: Wanted, earlier: Root) -> tuple[bytes, ...]:
    """Where an earlier version has the content that is wanted and not here: it got other names since (`dvk mv`)."""
    missing: set[bytes] = set()
    try:
        for under in wanted.under:
            for entries in iter_entries(PageId(wanted.root.id), repo.store.load_page, under=under):
                files = np.flatnonzero(entries.is_file)
                lacking = files[~repo.store.holds(entries.ids[files], entries.sizes[files])]
                missing |= {entries.ids[i].tobytes() for i in lacking.tolist()}
    except DataMissing:
        return ()  # then it is not known what is in it
    names: dict[bytes, bytes] = {}  # one for each content
    with Resolver(source.store) as resolver, contextlib.suppress(DataMissing, FormatError):
        for part in resolver.resolve(earlier) if missing else ():
            for i in np.flatnonzero(part.entries.is_file).tolist():
                an_id = part.entries.ids[i].tobytes()
                if an_id in missing:
                    names.setdefault(an_id, part.entries.names[i])
    if len(names) <= _NAMES:
        return tuple(sorted(names.values()))
    # Many: by the folders that they lie in, which may hold some more.
    return normal_prefixes({name.rpartition(b"/")[0] for name in names.values()})


def _earlier(repo: Repo, source: Remote) -> dict[str, list[Root]]:
    """By shown path: the folders that history names there, those first that are known to be on the remote."""
    out: dict[str, list[Root]] = {}
    for named in head_history(repo):
        roots = out.setdefault(show(named.path), [])
        if named.root.kind == FOLDER and named.root not in roots:
            roots.append(named.root)
    known = repo.confirmed([source.name])
    return {name: sorted(roots, key=lambda r: r.text not in known) for name, roots in out.items()}
