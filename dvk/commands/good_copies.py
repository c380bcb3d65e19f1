"""Where `repair` looks for good copies: what the user names, a remote or the folder of a clone, then the remotes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct

from dvk.backend.local import LocalBackend
from dvk.commands.repo import Repo
from dvk.errors import DvkError, NotFound, NotOurs
from dvk.events import Event, Note, OnEvent
from dvk.store.store import Store


class Source(Struct, frozen=True):
    """A store that may have good copies."""

    name: str
    store: Store


@contextmanager
def sources(repo: Repo, named: str | None, *, but: str = "", on_event: OnEvent) -> Iterator[list[Source]]:
    """The stores to ask, in order: the one that was named, then the remotes. One that cannot be opened is noted.

    Args:
        but: the name of a remote that is not asked.

    Raises:
        NotFound, NotOurs: what was named is none.
    """
    found: list[Source] = []
    try:
        remotes = repo.workspace.config.remote_order() if repo.workspace.config.remotes() else []
        if named is not None:
            found.append(_named(repo, named))
        for name in remotes:
            if name not in (but, named):
                try:
                    found.append(Source(name, repo.remote(name, write=False).store))
                except DvkError as error:
                    on_event(Note(f"cannot be asked ({error.message})", subject=name))
        yield found
    finally:
        for source in found:
            source.store.close()


def _named(repo: Repo, named: str) -> Source:
    if named in repo.workspace.config.remotes():
        return Source(named, repo.remote(named, write=False).store)
    path = os.path.join(os.fsdecode(repo.cwd), named)
    if not os.path.isdir(path):
        raise NotFound("is neither a remote nor a folder", subject=named, hint="`dvk remote list` shows the remotes")
    if os.path.isfile(os.path.join(path, "dvk.json")):
        return Source(named, Store(LocalBackend(os.path.realpath(path), read_only=True)))
    try:
        with Repo(path, environ=repo.environ) as other:
            store_dir = os.fsdecode(other.workspace.store_dir)
    except DvkError as error:
        raise NotOurs("there is no clone and no dvk store", subject=named, hint=error.hint) from error
    store = Store(LocalBackend(store_dir, read_only=True))
    if store.describe() is None:
        raise NotOurs("this clone holds no data", subject=named)
    return Source(named, store)


def quiet(on_event: OnEvent) -> OnEvent:
    """Progress without the notes on locators: that they are of no use is why there is a repair."""

    def hear(event: Event) -> None:
        if not isinstance(event, Note):
            on_event(event)

    return hear
