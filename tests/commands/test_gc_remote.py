"""`dvk gc --remote`: what Git leads to stays, the rest goes in steps that can be taken back, and doubt stops it."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from projects import Project, noise

from dvk.commands.gc_remote import (
    Asked,
    apply_remote_gc,
    plan_remote_gc,
    sweep_remote_gc,
    undo_remote_gc,
)
from dvk.commands.kept import Policy
from dvk.commands.pull import pull
from dvk.commands.push import push
from dvk.errors import DvkError, FormatError, Refused, Unsafe
from dvk.store.collect_plan import Limits

NOW = Limits(retention=0, young=0, grace=0, more_than_half=True)


class Team:
    """A bucket, a Git server, and clones of both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bucket = folder, folder / "bucket"
        self.one = Project(folder / "one", folder / "home")
        self.one.dvk("init", "--no-hooks")
        self.one.dvk("remote", "add", "origin", str(self.bucket), "--local")
        self.one.git("commit", "-q", "-m", "init")
        self.one.git("init", "-q", "--bare", str(folder / "server.git"))
        self.one.git("remote", "add", "origin", str(folder / "server.git"))
        self.publish(self.one)

    def publish(self, clone: Project, *refs: str) -> None:
        clone.git("push", "-q", "--force", "origin", *(refs or ("HEAD:refs/heads/main",)))

    def clone(self, name: str, *options: str) -> Project:
        top = self.folder / name
        self.one.git("clone", "-q", *options, f"file://{self.folder / 'server.git'}", str(top), "-b", "main")
        made = Project(top, self.folder / "home", init=False)
        made.dvk("remote", "add", "origin", str(self.bucket), "--local")
        return made

    def packs(self) -> set[str]:
        return {p.name for p in self.bucket.rglob("*") if p.is_file() and p.parent.parent.name in ("p", "m")}

    def objects(self) -> set[str]:
        return {str(p.relative_to(self.bucket)) for p in self.bucket.rglob("*") if p.is_file()}

    def restores(self, rev_of: Project, *revs: str) -> None:
        """A fresh clone gets these revisions back, byte for byte."""
        for i, rev in enumerate(revs):
            fresh = rev_of.clone(self.folder / f"fresh{time.monotonic_ns()}-{i}")
            fresh.dvk("remote", "add", "origin", str(self.bucket), "--local")
            fresh.git("checkout", "-q", rev)
            with fresh.repo() as repo:
                done = pull(repo)
            assert not done.failures, done.failures


def versions(team: Team, count: int, path: str = "a.bin") -> list[str]:
    """Commits of one clone, each pushed by itself, of data that has nothing in common."""
    out = []
    for i in range(count):
        # Each a little smaller, so that what goes is never more than half by a byte of luck.
        out.append(team.one.version({path: noise(20_000 - 50 * i, 1000 + i)}, path, message=f"v{i}"))
        with team.one.repo() as repo:
            push(repo)
    team.publish(team.one)
    return out


@pytest.fixture
def team(tmp_path: Path) -> Team:
    return Team(tmp_path)


def forget_history(clone: Project) -> None:
    clone.git("reflog", "expire", "--expire=all", "--expire-unreachable=all", "--all")
    clone.git("gc", "-q", "--prune=now")


def collect(project: Project, policy: Policy | None = None, limits: Limits = NOW, *, offline: bool = False) -> int:
    """Plan, apply and sweep; how many packs were condemned."""
    with project.repo() as repo:
        plan = plan_remote_gc(repo, Asked("origin", policy or Policy(), limits, offline))
        if not plan.plan_file:
            return 0
        condemned = apply_remote_gc(repo, plan.plan_file)
        if condemned.packs:
            sweep_remote_gc(repo, "origin")
        return condemned.packs


def test_what_history_names_stays_and_what_it_forgot_goes(team: Team) -> None:
    commits = versions(team, 3)
    assert collect(team.one) == 0
    team.one.git("reset", "-q", "--hard", commits[1])
    team.publish(team.one)
    assert collect(team.one) == 0, "the reflog still leads to it"
    forget_history(team.one)
    before = team.packs()
    assert collect(team.one) == 2
    assert len(before - team.packs()) == 2
    team.restores(team.one, *commits[:2])


def test_a_dry_run_changes_nothing_and_a_plan_can_be_taken_back(team: Team) -> None:
    commits = versions(team, 2)
    team.one.git("branch", "keep", commits[1])
    team.one.git("reset", "-q", "--hard", commits[0])
    team.publish(team.one)
    team.one.git("branch", "-D", "keep")
    forget_history(team.one)
    before = team.objects()
    with team.one.repo() as repo:
        plan = plan_remote_gc(repo, Asked("origin", limits=Limits(0, 0, 1000, True)))
        assert team.objects() == before
        done = apply_remote_gc(repo, plan.plan_file)
        assert done.packs == plan.packs == 2 and before <= team.objects()
        with pytest.raises(Refused, match="hours"):
            sweep_remote_gc(repo, "origin")
        assert undo_remote_gc(repo, "origin").versions == 1
        with pytest.raises(Refused, match="nothing is condemned"):
            undo_remote_gc(repo, "origin")
        assert before <= team.objects()
    team.one.git("reset", "-q", "--hard", commits[0])


def test_a_plan_that_was_changed_or_is_old_is_refused(team: Team) -> None:
    commits = versions(team, 2)
    team.one.git("reset", "-q", "--hard", commits[0])
    team.publish(team.one)
    forget_history(team.one)
    with team.one.repo() as repo:
        file = Path(plan_remote_gc(repo, Asked("origin", limits=NOW)).plan_file)
        raw = json.loads(file.read_text())
        for change in ({"plan": {**raw["plan"], "packs": []}}, {"kind": "x"}, {"format": 2}, {"policy": {}}):
            file.write_text(json.dumps({**raw, **change}))
            with pytest.raises(FormatError):
                apply_remote_gc(repo, str(file))
        file.write_text(json.dumps(raw))
        with pytest.raises(DvkError, match="for the remote origin"):
            apply_remote_gc(repo, str(file), remote="other")
    team.one.git("fetch", "-q", "origin")
    team.one.version({"b.bin": noise(9000, 77)}, "b.bin")
    with team.one.repo() as repo:
        push(repo)
        before = team.objects()
        apply_remote_gc(repo, str(file))  # what was added since is nobody's garbage: the decision is the same
    assert before <= team.objects()


def test_policies_let_old_versions_go(team: Team) -> None:
    commits = versions(team, 4)
    team.one.git("tag", "-a", "v1", "-m", "x", commits[0])
    forget_history(team.one)
    path = (b"a.bin".hex(),)
    with team.one.repo() as repo:
        for policy, gone in (
            (Policy(keep_last=2, paths=path), 2),
            (Policy(keep_last=2, paths=path, keep_tags=True), 1),
            (Policy(keep_last=1, paths=(b"other".hex(),)), 0),
            (Policy(keep_since=0), 0),
            (Policy(keep_since=int(time.time()) + 100), 3),
            (Policy(keep_since=int(time.time()) + 100, keep_tags=True), 2),
            (Policy(keep_since=int(time.time()) + 100, keep_last=3, paths=path), 1),
        ):
            found = plan_remote_gc(repo, Asked("origin", policy, NOW))
            assert found.versions == gone, policy
    assert collect(team.one, Policy(keep_last=2, paths=path, keep_tags=True)) == 2
    team.restores(team.one, commits[0], commits[2], commits[3])


def commit_at(project: Project, when: str) -> None:
    environ = {**project.environ, "GIT_COMMITTER_DATE": when, "GIT_AUTHOR_DATE": when}
    subprocess.run(["git", "commit", "-q", "-m", when], cwd=project.top, env=environ, check=True)


def test_what_was_current_at_a_date_stays(team: Team) -> None:
    """A version that came before the date and was replaced after it was current then."""
    for i in range(3):
        team.one.write({"a.bin": noise(20_000, i)})
        assert team.one.dvk("add", "a.bin").code == 0
        team.one.git("add", "-A")
        commit_at(team.one, f"2026-01-0{2 * i + 1}T12:00:00Z")
        with team.one.repo() as repo:
            push(repo)
    team.publish(team.one)
    forget_history(team.one)

    def gone(day: str) -> int:
        done = team.one.dvk("gc", "--remote", "origin", "--keep-since", day, "--retention", "0", "--i-know", "--json")
        return int(json.loads(done.out)["result"]["versions"])

    assert [gone(f"2026-01-0{day}") for day in (1, 2, 4, 6)] == [0, 0, 1, 2]


def test_other_worktrees_the_stash_and_conflicts_lead_to_data(team: Team) -> None:
    versions(team, 1)
    one = team.one
    one.git("worktree", "add", "-q", str(team.folder / "tree"), "-b", "side")
    tree = Project(team.folder / "tree", team.folder / "home", init=False)
    tree.write({"a.bin": noise(20_000, 501)})
    assert tree.dvk("add", "a.bin").code == 0 and tree.dvk("push").code == 0
    one.write({"a.bin": noise(20_000, 502)})
    assert one.dvk("add", "a.bin").code == 0 and one.dvk("push").code == 0
    one.git("stash", "-q")
    one.git("update-index", "--refresh")
    forget = Policy(keep_since=int(time.time()) + 1000)
    with one.repo() as repo:
        assert plan_remote_gc(repo, Asked("origin", forget, NOW)).versions == 0
    one.git("stash", "drop", "-q")
    tree.git("reset", "-q", "--hard")
    forget_history(one)
    with one.repo() as repo:
        assert plan_remote_gc(repo, Asked("origin", Policy(), NOW)).versions == 2


def test_a_worktree_that_is_not_there_stops_it(team: Team) -> None:
    versions(team, 1)
    team.one.git("worktree", "add", "-q", str(team.folder / "tree"), "-b", "side")
    (team.folder / "tree").rename(team.folder / "elsewhere")
    with team.one.repo() as repo, pytest.raises(Unsafe, match="worktree"):
        plan_remote_gc(repo, Asked("origin", limits=NOW))


# ---------------------------------------------------------------- incomplete clones


def colleague(team: Team) -> tuple[Project, str]:
    """Another clone that has data on a branch of its own, pushed to both."""
    other = team.clone("other")
    other.git("checkout", "-q", "-b", "theirs")
    commit = other.version({"theirs.bin": noise(20_000, 900)}, "theirs.bin")
    with other.repo() as repo:
        push(repo)
    team.publish(other, "theirs")
    return other, commit


@pytest.mark.parametrize("options", [("--depth", "1"), ("--single-branch",), ()])
def test_a_clone_that_does_not_know_a_colleagues_branch_is_stopped(team: Team, options: tuple[str, ...]) -> None:
    versions(team, 2)
    mine = team.clone("mine", *options)
    _, commit = colleague(team)
    before = team.objects()
    everything_old = Policy(keep_since=int(time.time()) + 1000)
    with mine.repo() as repo, pytest.raises(Unsafe, match=r"shallow|not fetched"):
        plan_remote_gc(repo, Asked("origin", everything_old, NOW))
    assert team.objects() == before
    if "--depth" not in options:
        # Even when it is told to go by what it has: what it never heard of is not its to retire.
        collect(mine, everything_old, offline=True)
        mine.git("fetch", "-q", "origin", "theirs:theirs")
        team.restores(mine, "theirs")
    del commit


def test_a_partial_clone_knows_all_that_it_can_fetch(team: Team) -> None:
    commits = versions(team, 3)
    team.one.git("-C", str(team.folder / "server.git"), "config", "uploadpack.allowFilter", "true")
    part = team.clone("part", "--filter=blob:none")
    assert collect(part, Policy(keep_last=1, paths=(b"a.bin".hex(),))) > 0
    team.restores(team.one, commits[2])
    (team.folder / "server.git").rename(team.folder / "away.git")
    with part.repo() as repo, pytest.raises(Unsafe):
        plan_remote_gc(repo, Asked("origin", limits=NOW))


def test_a_fork_of_the_bucket_by_another_project_keeps_its_own(team: Team) -> None:
    """Two repositories track the same data in one bucket; one forgets it, the other still leads to it."""
    commits = versions(team, 2)
    other = Project(team.folder / "second", team.folder / "home")
    other.dvk("init", "--no-hooks")
    other.dvk("remote", "add", "origin", str(team.bucket), "--local")
    theirs = other.version({"same.bin": team.one.read("a.bin")}, "same.bin")
    with other.repo() as repo:
        assert not push(repo).sent, "it is there already; but a record of their own says that they need it"
    team.one.git("reset", "-q", "--hard", commits[0])
    team.publish(team.one)
    forget_history(team.one)
    collect(team.one)
    team.restores(other, theirs)
    team.restores(team.one, commits[0])
    other.git("rm", "-q", "same.bin.dvk")
    other.git("commit", "-q", "--amend", "-m", "none")
    other.version({"new.bin": noise(5000, 1)}, "new.bin")
    with other.repo() as repo:
        push(repo)
    forget_history(other)
    assert collect(other) > 0, "now nobody needs it"
    team.restores(team.one, commits[0])


# ---------------------------------------------------------------- gates, from the terminal


def test_every_gate_has_the_same_exit_code_and_deletes_nothing(team: Team) -> None:
    commits = versions(team, 3)
    team.one.git("reset", "-q", "--hard", commits[0])
    team.publish(team.one)
    forget_history(team.one)
    bucket = team.bucket

    def refused(words: str, *options: str, code: int = 22) -> None:
        before = team.objects()
        done = team.one.dvk("gc", "--remote", "origin", "--retention", "0", "--young", "0", *options)
        assert done.code == code and words in done.err, (done.code, done.err)
        assert team.objects() == before

    refused("more than half")
    records = sorted(p for p in (bucket / "j").iterdir() if p.suffix == "")
    good = records[0].read_bytes()
    records[0].chmod(0o644)
    records[0].write_bytes(good[:-9])
    refused("cannot be read", "--i-know")
    records[0].write_bytes(good)
    hidden = [(p, p.read_bytes()) for p in (bucket / "j").iterdir()]
    for path, _ in hidden[: len(hidden) // 2]:
        path.unlink()
    refused("nothing was deleted", "--i-know")
    for path, _ in hidden[len(hidden) // 2 :]:
        path.unlink()
    refused("no record", "--i-know")
    for path, data in hidden:
        path.write_bytes(data)
    raw = json.loads((bucket / "dvk.json").read_text())
    (bucket / "dvk.json").chmod(0o644)
    for change, code in (({"features": {**raw["features"], "gc": ["later"]}}, 15), ({"store": "0" * 32}, 5)):
        (bucket / "dvk.json").write_text(json.dumps({**raw, **change}, indent=2, sort_keys=True) + "\n")
        refused("", "--i-know", code=code)
    (bucket / "dvk.json").write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
    assert team.one.dvk("gc", "--remote", "origin", "--retention", "0", "--young", "0", "--i-know").code == 0


def test_foreign_objects_and_names_that_only_look_like_ours_stay(team: Team) -> None:
    """What does not have the exact form of a key of ours is not touched, whatever it is called."""
    commits = versions(team, 2)
    team.one.git("reset", "-q", "--hard", commits[0])
    team.publish(team.one)
    forget_history(team.one)
    strange = ["README", "p.txt", "data/x", "P/aa/" + "a" * 64, "q/aa/" + "a" * 64, "l/f/zz", "g/other", "p/aa/UPPER"]
    for name in strange:
        (team.bucket / name).parent.mkdir(parents=True, exist_ok=True)
        (team.bucket / name).write_bytes(b"mine")
    (team.bucket / "p" / "link").symlink_to(team.folder / "home")
    assert collect(team.one) == 2
    assert all((team.bucket / name).read_bytes() == b"mine" for name in strange)
    assert (team.folder / "home").is_dir()


def test_the_verb_from_plan_to_sweep(team: Team) -> None:
    commits = versions(team, 2)
    team.one.git("reset", "-q", "--hard", commits[0])
    team.publish(team.one)
    forget_history(team.one)
    options = ("--retention", "0", "--young", "0", "--i-know", "--grace", "0")
    done = team.one.dvk("gc", "--remote", "origin", *options, "--plan", str(team.folder / "plan.json"))
    assert done.code == 0 and "could go from origin: 2 of 4 packs, 1 version that nothing leads to" in done.out
    assert f"`dvk gc --apply {team.folder / 'plan.json'}` condemns it" in done.out
    done = team.one.dvk("gc", "--apply", str(team.folder / "plan.json"))
    assert done.code == 0 and "condemned on origin; nothing is deleted yet" in done.out
    done = team.one.dvk("gc", "--remote", "origin")
    assert "2 packs condemned earlier" in done.out
    done = team.one.dvk("gc", "--remote", "origin", "--sweep", "--grace", "0")
    assert done.code == 0 and "in 2 packs deleted from origin" in done.out
    assert team.one.dvk("gc", "--remote", "origin", "--sweep").code == 5
    for wrong in (
        ("--sweep",),
        ("--keep-tags",),
        ("--remote", "origin", "--keep-last", "2"),
        ("--remote", "origin", "--keep-tags"),
        ("--remote", "origin", "--sweep", "--undo"),
        ("--remote", "origin", "--retention", "soon"),
        ("--remote", "origin", "--keep-since", "yesterday"),
        ("--remote", "origin", "--keep-last", "0", "a.bin"),
        ("--remote", "origin", "--forget", "/x"),
    ):
        assert team.one.dvk("gc", *wrong).code == 2, wrong
    assert team.one.dvk("gc", "--remote", "nothing").code == 6
    assert team.one.dvk("gc", "--apply", str(team.folder / "none.json")).code in (6, 16)
