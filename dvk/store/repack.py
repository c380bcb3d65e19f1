"""Repacking a remote while nobody else uses it: what lives in packs that are mostly dead is sent again in new ones.

    sparse = find_sparse(remote, census, ours)              # packs of which less than half is needed
    resend(local, remote, roots, sparse, census, ...)       # then their records can be replaced and the packs go

It is a push like any other, by this clone's store, that is told not to rely on those packs: what the store lacks of the
versions concerned is fetched first, and locators are written again on the way. Nothing is deleted here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from dvk.errors import Unsafe
from dvk.events import OnEvent, ignore
from dvk.store.census import Census
from dvk.store.compact import chunks_of_root, root_of_text
from dvk.store.fetch import Wanted, fetch
from dvk.store.index import U64, prefixes
from dvk.store.names import distinct
from dvk.store.pack import BLOCK_HEADER, PackKind
from dvk.store.push import Owner, Version, push
from dvk.store.push_plan import Avoid
from dvk.store.root import Root
from dvk.store.store import Store

#: A pack of which less than this part is needed is sparse.
_LIVE_PART = 0.5


def find_sparse(remote: Store, census: Census, ours: Collection[str]) -> dict[str, list[str]]:
    """Data packs of which little is needed, and that only records of `ours` name: key -> roots that use it.

    Raises:
        Unsafe: a version cannot be followed to its data.
    """
    strangers = census.named(census.live - set(ours))
    live: list[U64] = []
    users: dict[str, list[str]] = {}
    for text in sorted({root for rid in census.live & census.confirmed for root in census.records[rid].roots}):
        used, ids = chunks_of_root(remote, text)
        live.append(prefixes(ids))
        for key in used:
            users.setdefault(key, []).append(text)
    needed = distinct(np.concatenate(live)) if live else np.zeros(0, np.uint64)
    out: dict[str, list[str]] = {}
    for key in sorted(users.keys() & census.packs.keys() - strangers):
        if key.startswith(PackKind.DATA.prefix) and _live_bytes(remote, key, needed) < _LIVE_PART * census.packs[key]:
            out[key] = users[key]
    return out


def _live_bytes(remote: Store, key: str, needed: U64) -> int:
    footer = remote.footer(bytes.fromhex(key.rsplit("/", 1)[-1]), PackKind.DATA)
    rows = np.isin(prefixes(footer.ids), needed)
    ratio = (footer.packed_len + BLOCK_HEADER.size) / np.maximum(footer.raw_len, 1)
    return int((footer.chunk_len[rows] * ratio[footer.chunk_block[rows]]).sum())


def resend(
    local: Store,
    remote: Store,
    roots: Sequence[str],
    packs: Iterable[str],
    census: Census,
    *,
    state: str,
    project: str,
    on_event: OnEvent = ignore,
) -> None:
    """Send what `roots` have in `packs` again, elsewhere; their locators lead there then.

    Raises:
        Unsafe: it could not all be had; nothing relies on less than before.
    """
    keys = set(packs)
    naming = {rid for rid, r in census.records.items() if not keys.isdisjoint((*r.packs, *r.reused))}
    fallen = naming | census.relying(naming)
    avoid = Avoid({bytes.fromhex(k.rsplit("/", 1)[-1]) for k in keys}, {bytes.fromhex(rid) for rid in fallen})
    found = [root_of_text(remote, text) for text in roots]
    send_again(local, remote, found, state=state, project=project, avoid=avoid, on_event=on_event)


def send_again(
    local: Store,
    remote: Store,
    roots: Sequence[Root],
    *,
    state: str,
    project: str,
    avoid: Avoid | None = None,
    on_event: OnEvent = ignore,
) -> None:
    """Fetch what `local` lacks of versions and push them with new locators, as far as the old ones do not lead to all.

    Args:
        avoid: what must not be relied on; without, everything that the versions rely on is read back.

    Raises:
        Unsafe: it could not all be had, or sent; nothing relies on less than before.
    """
    done = fetch(remote, local, [Wanted(root) for root in roots], on_event=on_event)
    if done.failures:
        raise Unsafe(
            f"what is to be sent again cannot be read ({done.failures[0][1].message}); nothing was deleted",
            subject=remote.name,
            hint="`dvk verify --remote` says what is damaged",
        )
    versions = [Version(root) for root in roots]
    verify = avoid is None
    sent = push(local, remote, versions, state, on_event=on_event, owner=Owner(project), avoid=avoid, verify_all=verify)
    if sent.absent or len(sent.sent) != len(roots):
        raise Unsafe("not all of what is to be sent again was; nothing was deleted", subject=remote.name)
