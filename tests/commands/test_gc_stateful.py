"""Two clones, a Git server, a bucket: people commit, push, branch, forget and collect in any order, and die doing it.

The model is a dictionary: what each commit had. After any sequence every commit on the server comes back to a fresh
clone byte for byte, and every commit that a clone made and still leads to is whole in its own store.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from projects import Project, noise

from dvk.backend.local import LocalBackend
from dvk.commands.gc_local import gc_local
from dvk.commands.gc_remote import Asked, apply_remote_gc, plan_remote_gc, sweep_remote_gc, undo_remote_gc
from dvk.commands.kept import Policy
from dvk.commands.pull import pull
from dvk.commands.push import push
from dvk.commands.repo import Repo
from dvk.errors import Refused, Unsafe
from dvk.store.collect_plan import Limits
from dvk.store.store import as_column

pytestmark = pytest.mark.timeout(900)

NOW = Limits(retention=0, young=0, grace=0, more_than_half=True)
WHO = st.sampled_from(["one", "two"])
SEED = st.integers(0, 5)


class Killed(BaseException):
    """The process dies here."""


class Team(RuleBasedStateMachine):
    """See above."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="dvk-team-"))
        self.contents: dict[str, bytes] = {}  #: commit -> what `a` was
        self.made: dict[str, set[str]] = {"one": set(), "two": set()}
        home = self.folder / "home"
        one = Project(self.folder / "one", home)
        one.dvk("init", "--no-hooks")
        one.git("commit", "-q", "-m", "init")
        one.git("init", "-q", "--bare", str(self.folder / "server"))
        one.git("remote", "add", "origin", str(self.folder / "server"))
        one.git("push", "-q", "origin", "main")
        one.git("clone", "-q", str(self.folder / "server"), str(self.folder / "two"), "-b", "main")
        self.clones = {"one": one, "two": Project(self.folder / "two", home, init=False)}
        for clone in self.clones.values():
            clone.dvk("remote", "add", "origin", str(self.folder / "bucket"), "--local")
        self._commit("one", 0)
        self._push("one")

    def teardown(self) -> None:
        try:
            self._check_server()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------ what people do

    def _commit(self, who: str, seed: int) -> None:
        clone = self.clones[who]
        data = noise(3000 + seed, seed)
        commit = clone.version({"a": data, "b": noise(500, 100 + seed)}, "a", "b")
        self.contents[commit] = data
        self.made[who].add(commit)

    def _push(self, who: str) -> None:
        clone = self.clones[who]
        with clone.repo() as repo:
            done = push(repo)
        if not done.failures:
            clone.git("push", "-q", "--force", "origin", f"HEAD:refs/heads/{who}")

    @rule(who=WHO, seed=SEED)
    def commit(self, who: str, seed: int) -> None:
        """A version; seeds repeat, so that what was collected comes back."""
        self._commit(who, seed)

    @rule(who=WHO)
    def push_both(self, who: str) -> None:
        """Data, then Git."""
        self._push(who)

    @rule(who=WHO, seed=SEED)
    def add_and_drop(self, who: str, seed: int) -> None:
        """A version that is never committed."""
        clone = self.clones[who]
        clone.write({"a": noise(3000 + seed, seed)})
        clone.dvk("add", "a")
        clone.git("reset", "-q", "--hard")

    @rule(who=WHO, back=st.integers(1, 3))
    def go_back(self, who: str, back: int) -> None:
        """Some commits are of no interest any more."""
        clone = self.clones[who]
        clone.git_repo.git("reset", "-q", "--hard", f"HEAD~{back}", ok=False)

    @rule(who=WHO)
    def forget(self, who: str) -> None:
        """Git forgets what nothing leads to."""
        self.clones[who].git("reflog", "expire", "--expire=all", "--expire-unreachable=all", "--all")
        self.clones[who].git("gc", "-q", "--prune=now")

    @rule(who=WHO)
    def fetch(self, who: str) -> None:
        """Hear of the others."""
        self.clones[who].git("fetch", "-q", "--all", "--prune")

    # ------------------------------------------------------------ collecting

    @rule(who=WHO, undo=st.booleans(), last=st.sampled_from([None, 1]), dies=st.integers(0, 30))
    def collect_remote(self, who: str, undo: bool, last: int | None, dies: int) -> None:
        """All steps; killed after some change of the bucket, if it makes as many."""
        policy = Policy() if last is None else Policy(keep_last=last, paths=(b"a".hex(), b"b".hex()))

        def work(repo: Repo) -> None:
            try:
                plan = plan_remote_gc(repo, Asked("origin", policy, NOW))
                if plan.plan_file and not plan.waiting:
                    apply_remote_gc(repo, plan.plan_file)
                if undo:
                    undo_remote_gc(repo, "origin")
                else:
                    sweep_remote_gc(repo, "origin")
            except (Refused, Unsafe):
                pass  # a gate, or nothing to do; that nothing is lost is what is looked at

        self._dying(who, work, dies if last is None else 99)

    @rule(who=WHO, dies=st.integers(0, 20))
    def collect_local(self, who: str, dies: int) -> None:
        """Killed likewise."""
        self._dying(who, lambda repo: gc_local(repo, young_s=-100), dies)

    def _dying(self, who: str, work: Any, dies: int) -> None:
        count = [0]
        put, delete = LocalBackend.put, LocalBackend.delete

        def counted(change: Any) -> Any:
            def do(*arguments: Any, **named: Any) -> None:
                if count[0] >= dies:
                    raise Killed
                count[0] += 1
                change(*arguments, **named)

            return do

        LocalBackend.put, LocalBackend.delete = counted(put), counted(delete)  # type: ignore[method-assign]
        try:
            with self.clones[who].repo() as repo:
                work(repo)
        except Killed:
            pass
        finally:
            LocalBackend.put, LocalBackend.delete = put, delete  # type: ignore[method-assign]

    # ------------------------------------------------------------ what must hold

    @precondition(lambda self: bool(self.contents))
    @invariant()
    def own_commits_are_whole(self) -> None:
        for who, clone in self.clones.items():
            reachable = set(clone.git("rev-list", "--all", "--reflog").split()) & self.made[who]
            wanted = [self.contents[commit] for commit in sorted(reachable)]
            with clone.repo() as repo:
                ids = as_column(blake3(data).digest() for data in wanted)
                assert repo.store.holds(ids, np.array([len(data) for data in wanted], np.int64)).all()

    def _check_server(self) -> None:
        fresh = self.folder / "fresh"
        self.clones["one"].git("clone", "-q", str(self.folder / "server"), str(fresh), "-b", "main")
        project = Project(fresh, self.folder / "home", init=False)
        project.dvk("remote", "add", "origin", str(self.folder / "bucket"), "--local")
        for branch in project.git("for-each-ref", "--format=%(objectname)", "refs/remotes/").split():
            if branch in self.contents:
                project.git("checkout", "-q", "-f", branch)
                with project.repo() as repo:
                    done = pull(repo)
                assert not done.failures, done.failures
                assert project.read("a") == self.contents[branch]


def _settings(examples: int, steps: int) -> settings:
    quiet = list(HealthCheck)
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=quiet, database=None
    )


TestTeam = Team.TestCase
TestTeam.settings = _settings(3, 8)


@pytest.mark.slow
class TestTeamForLong(Team.TestCase):  # type: ignore[name-defined,misc]
    """The same for some minutes."""

    settings = _settings(60, 25)
