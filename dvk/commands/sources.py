"""Which remotes are asked for data, and in which order: the one that was named, or the default and then the others.

    sources = Sources(repo, None, on_event=on_event)
    for source in sources:                     # opened when it is its turn
        with sources.asking(source):           # of several, one that breaks is passed over
            missing = fetch_from(source, missing)
        if not missing:
            break
    sources.check()                            # nobody could be asked: why

Problem: a mirror close by, an old bucket, a colleague's disk. Data is on one of them, any may be down, and nobody
wants to say which. Choice: what one remote lacks, or answers wrongly, the next is asked for; every byte is proven by
its hash, so it does not matter whose it is. With one remote (or `--remote`) its error is the answer, at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dvk.commands.repo import Remote, Repo
from dvk.errors import DvkError, FormatError, NotFound, NotOurs, Refused, RemoteError, StorageError, UsageError
from dvk.events import Note, OnEvent, ignore

#: What is wrong with one remote and says nothing of the others.
_PROBLEMS = (RemoteError, NotFound, Refused, UsageError, StorageError, FormatError)


class Sources:
    """The remotes of a repository as places to read from. Changes nothing.

    Args:
        name: the only one to ask.

    Raises:
        NotFound: there is no remote of that name, or none at all.
    """

    def __init__(self, repo: Repo, name: str | None = None, *, on_event: OnEvent = ignore) -> None:
        self._repo, self._on_event = repo, on_event
        order = [] if name is not None else repo.workspace.config.remote_order()
        self.names = order if len(order) > 1 else [repo.remote_config(name).name]
        self.asked: list[str] = []  #: those that answered
        self.problems: list[tuple[str, DvkError]] = []
        self._open: list[Remote] = []
        self._asked_before = 0  # requests to those that are closed

    def __iter__(self) -> Iterator[Remote]:
        """Each remote with a dvk store, opened; goes on where an earlier iteration stopped."""
        while len(self.asked) + len(self.problems) < len(self.names):
            name = self.names[len(self.asked) + len(self.problems)]
            try:
                remote = self._repo.remote(name, write=False)
                self._open.append(remote)
                expect_store(remote)
            except _PROBLEMS as error:
                self._passed_over(name, error)
                continue
            self.asked.append(name)
            yield remote

    @contextmanager
    def asking(self, remote: Remote) -> Iterator[None]:
        """Around whatever a remote is asked for: where there are others, one that breaks is noted and passed over."""
        try:
            yield
        except RemoteError as error:
            self.asked.remove(remote.name)
            self._passed_over(remote.name, error)

    def check(self) -> None:
        """Raise the first problem if no remote could be asked."""
        if not self.asked and self.problems:
            raise self.problems[0][1]

    @property
    def apology(self) -> str:
        """For a message on what no remote has: those that could not be asked."""
        return "".join(f"; {name} could not be asked ({error.message})" for name, error in self.problems)

    @property
    def requests(self) -> int:
        """How often all of them together were asked so far."""
        return self._asked_before + sum(remote.requests for remote in self._open)

    def close(self) -> None:
        """Let go of the connections."""
        while self._open:
            remote = self._open.pop()
            self._asked_before += remote.requests
            remote.store.close()

    def _passed_over(self, name: str, error: DvkError) -> None:
        if len(self.names) == 1:
            raise error
        self.problems.append((name, error))
        if len(self.asked) + len(self.problems) < len(self.names):
            self._on_event(Note(f"cannot be asked ({error.message}); trying the next remote", subject=name))


def expect_store(source: Remote) -> None:
    """Raise if there is no dvk store at the remote's URL.

    Raises:
        NotOurs: there is none. NewerFormat: only a newer dvk can read it.
    """
    found = source.store.describe()
    if found is None:
        raise NotOurs(
            "there is no dvk store here (no dvk.json)",
            subject=source.url,
            hint=f"check `dvk remote list`; the first `dvk push --remote {source.name}` makes one",
        )
    found.require("read", subject=source.url)
