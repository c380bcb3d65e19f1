"""Parts of a folder whose present version nobody has pushed yet, by way of the versions before it.

A clone pulled `val`, added one file to it, and now wants `train`. The folder's new version is on no remote, and all of
`train` is, as part of the version that history names before. Its pages and chunks are the same ones; so what lies at
the same place in an earlier version is fetched, and then the present one is looked at again.
"""

from __future__ import annotations

from collections.abc import Sequence

from dvk.commands.repo import Remote, Repo
from dvk.commands.versions import head_history
from dvk.errors import DataMissing, DvkError
from dvk.events import OnEvent, ignore
from dvk.store.fetch import Fetched, Wanted, fetch, is_here
from dvk.store.names import show
from dvk.store.root import FOLDER, Root

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
        done = fetch(source.store, repo.store, [Wanted(root, wanted.under, wanted.name)], on_event=on_event)
        out.new_bytes += done.new_bytes
        out.moved_bytes += done.moved_bytes
        out.records |= done.records
        if is_here(repo.store, wanted):
            out.roots += 1
            return True
    return False


def _earlier(repo: Repo, source: Remote) -> dict[str, list[Root]]:
    """By shown path: the folders that history names there, those first that are known to be on the remote."""
    out: dict[str, list[Root]] = {}
    for named in head_history(repo):
        roots = out.setdefault(show(named.path), [])
        if named.root.kind == FOLDER and named.root not in roots:
            roots.append(named.root)
    known = repo.confirmed([source.name])
    return {name: sorted(roots, key=lambda r: r.text not in known) for name, roots in out.items()}
