"""A remote of three versions, a collector of it, and what tests of collecting ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synckit import (
    Remote,
    add_folder,
    chunks,
    never_inline,
    new_store,
    send,
    small_packs,
    small_pages,
)

from dvk.backend.contract import Backend
from dvk.errors import Unsafe
from dvk.store.collect import Collector, CollectPlan, Kept, Limits
from dvk.store.push import Version
from dvk.store.root import Root
from dvk.store.store import Store

NOW = 4_000_000_000  # long after every record of these tests, so that all are old
A = {b"a/%d" % i: chunks(("a", i), 3, 300) for i in range(12)}
B = {**A, b"b": chunks("b", 40, 300)}
C = {b"a/1": A[b"a/1"], b"c": chunks("c", 40, 300)}
EAGER = Limits(grace=0, young=0, more_than_half=True)


def everything_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages, packs and locators so small that little data has many of them."""
    small_pages(monkeypatch)
    small_packs(monkeypatch)
    never_inline(monkeypatch)


def collector(
    backend: Backend, state: Path, *, limits: Limits = EAGER, clock: Callable[[], float] = lambda: NOW
) -> Collector:
    return Collector(Store(backend), str(state), limits=limits, clock=clock)


def kept(known: list[Root], *wanted: Root) -> Kept:
    return Kept(frozenset(r.text for r in known), frozenset(r.text for r in wanted))


def collect(backend: Backend, state: Path, what: Kept, **settings: Any) -> CollectPlan:
    with collector(backend, state, **settings) as c:
        plan = c.condemn(what, c.plan(what))
        if plan.packs:
            c.sweep(what)
        return plan


def three_versions(state: Path) -> tuple[Remote, list[Root]]:
    remote, local = Remote(), new_store()
    roots: list[Root] = []
    for tree in (A, B, C):
        roots.append(add_folder(local, tree))
        send(local, remote.store, state, Version(roots[-1], tuple(reversed(roots[:-1]))))
    return remote, roots


def refused(remote: Backend, state: Path, what: Kept, words: str, **settings: Any) -> None:
    before = sorted(item.key for item in remote.list("p/"))
    with collector(remote, state, **settings) as c, pytest.raises(Unsafe, match=words):
        c.plan(what)
    assert sorted(item.key for item in remote.list("p/")) == before


def records(remote: Remote, project: str = "") -> list[Any]:
    found = [remote.record(bytes.fromhex(k[2:])) for k in remote.keys("j/") if "." not in k]
    return [r for r in found if not project or r.project == project]
