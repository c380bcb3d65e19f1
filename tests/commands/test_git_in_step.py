"""Real git with hooks installed on a repository of 20 versions: data is what the commit says, or somebody is told."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from flowkit import Flow, noise

from dvk.commands.add import add
from dvk.commands.hooks import install_hooks
from dvk.workspace.ignore import ensure_attributes

VERSIONS = 20


def files(n: int) -> dict[str | bytes, bytes]:
    """Version n: a file that always changes, a folder that changes at times, a file that comes and goes."""
    out: dict[str | bytes, bytes] = {"a.bin": noise(400, n), "n.txt": b"%d\n" % n}
    out |= {f"im/{k}": noise(50, 100 * k + n // (k + 2)) for k in range(3)}
    if n >= 12:
        out["im/late"] = b"late"
    if 8 <= n < 15:
        out["b.csv"] = b"id\n%d\n" % (n // 2)
    return out


class History(Flow):
    """The repository and what data each of its versions has."""

    def build(self) -> None:
        ensure_attributes(os.fsencode(self.top))
        self.git("add", ".gitattributes")
        self.commits: list[str] = []
        self.at_version: list[dict[bytes, bytes]] = []
        for n in range(VERSIONS):
            new = files(n)
            if "b.csv" not in new and self.exists("b.csv"):
                self.git("rm", "-q", "b.csv.dvk")
                self.remove("b.csv")
            self.write(new)
            self.add(*(p for p in ("a.bin", "im", "b.csv") if p == "im" or p in new))
            self.git("add", "n.txt")
            self.commits.append(self.commit(f"version {n}"))
            self.at_version.append(self.data())
            self.git("tag", f"v{n}")

    def is_at(self, n: int) -> None:
        """Data of the whole work tree is that of version n, and nobody has anything to say."""
        assert self.data() == self.at_version[n], n
        self.is_clean()

    def is_clean(self) -> None:
        found = self.status()
        assert found.clean and not found.left_behind, found
        assert self.git("status", "--porcelain") == ""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> History:
    home = tmp_path_factory.mktemp("built")
    made = History(home / "r", home)
    made.build()
    with made.repo() as repo:
        install_hooks(repo)
    return made


@pytest.fixture
def history(built: History, tmp_path: Path) -> History:
    """A copy for one test."""
    shutil.copytree(built.top, tmp_path / "r", symlinks=True)
    copy = History(tmp_path / "r", tmp_path, remote=f"file://{built.remote_dir}", init=False)
    copy.commits, copy.at_version = built.commits, built.at_version
    return copy


def test_checkout_goes_back_and_forth_with_files_that_come_and_go(history: History) -> None:
    for n in (0, 14, 15):
        history.git("checkout", "-q", f"v{n}")
        history.is_at(n)
    history.git("switch", "-q", "main")
    history.is_at(19)


def test_what_was_added_since_the_last_checkout_is_left_behind_by_the_next(history: History) -> None:
    """The pointers are those of the last hook again, and data is not."""
    history.git("checkout", "-q", "-b", "side")
    history.version({"a.bin": b"side", "im/side": b"side"}, "a.bin", "im")
    history.git("checkout", "-q", "main")
    history.is_at(19)


def test_reset_stash_cherry_pick_and_revert_take_data_along(history: History) -> None:
    history.git("reset", "-q", "--hard", "v5")
    history.is_at(5)
    history.write({"a.bin": b"mine", "im/0": b"mine too"})
    history.add("a.bin", "im")
    mine = history.data()
    history.git("stash", "-q")
    history.is_at(5)
    history.git("stash", "pop", "-q", "--index")
    assert history.data() == mine and history.status().paths[0].staged == "modified"
    history.git("reset", "-q", "--hard")
    assert history.read("a.bin") == b"mine", "no commit leads back to it any more, so it stays"
    assert history.status().paths[0].behind
    history.checkout()
    history.is_at(5)
    history.git("cherry-pick", "v6")
    history.is_at(6)
    history.git("revert", "--no-edit", "HEAD")
    history.is_at(5)


def test_merge_takes_what_the_other_side_did(history: History) -> None:
    history.git("checkout", "-q", "-b", "side", "v4")
    history.git("merge", "-q", "--ff-only", "v6")
    history.is_at(6)
    history.version({"im/side": b"side"}, "im")
    history.git("checkout", "-q", "-b", "other", "v6")
    history.version({"im/1": b"other", "c.bin": b"c"}, "im", "c.bin")
    history.git("merge", "-q", "-m", "both", "side")
    history.is_clean()
    assert history.read("im/side") == b"side" and history.read("im/1") == b"other" and history.read("c.bin") == b"c"


def test_a_merge_that_stops_leaves_decided_paths_in_step_and_its_end_the_rest(history: History) -> None:
    history.git("checkout", "-q", "-b", "side", "v4")
    history.version({"a.bin": b"side", "im/side": b"side"}, "a.bin", "im")
    history.git("checkout", "-q", "-b", "other", "v4")
    history.version({"a.bin": b"other"}, "a.bin")
    said = history.git_repo.git("merge", "side", ok=False)
    assert "CONFLICT" in said and history.read("im/side") == b"side" and history.read("a.bin") == b"other"
    assert history.dvk("resolve", "a.bin", "--theirs")[0] == 0
    assert history.read("a.bin") == b"side"
    history.commit("done")
    history.is_clean()


def test_rebase_is_in_step_at_its_end_when_it_is_given_up_and_when_there_is_nothing_to_do(history: History) -> None:
    history.git("checkout", "-q", "-b", "topic", "v2")
    history.version({"im/t1": b"1"}, "im")
    history.version({"im/t2": b"2"}, "im")
    topic = history.data()
    history.git("rebase", "-q", "v6")
    history.is_clean()
    assert history.data() == topic | history.at_version[6] | {p: topic[p] for p in (b"im/t1", b"im/t2")}
    history.git("checkout", "-q", "-b", "clash", "v2")
    history.version({"a.bin": b"clash"}, "a.bin")
    before = history.data()
    assert history.git_repo.git("rebase", "v3", ok=False) is not None and (history.top / ".git/rebase-merge").exists()
    history.git("rebase", "--abort")
    assert history.data() == before
    history.is_clean()
    history.git("checkout", "-q", "-b", "behind", "v7")
    history.git("rebase", "-q", "v11")
    history.is_at(11)


def test_bisect_runs_on_the_data_of_each_step(history: History, tmp_path: Path) -> None:
    """The script fails on data of another version than the commit, and finds the one that brought `im/late`."""
    script = tmp_path / "judge.py"
    script.write_text(
        "import os, random, sys\n"
        "n = int(open('n.txt').read())\n"
        "if open('a.bin', 'rb').read() != random.Random(n).randbytes(400):\n"
        "    sys.exit(200)  # which ends the bisection\n"
        "sys.exit(os.path.exists('im/late'))\n"
    )
    history.git("bisect", "start", "v19", "v0")
    said = history.git("bisect", "run", "python3", str(script))
    assert f"{history.commits[12]} is the first bad commit" in said and "updated" not in said
    history.git("bisect", "reset")
    history.is_at(19)


def test_a_new_worktree_has_its_data(history: History, tmp_path: Path) -> None:
    history.git("worktree", "add", "-q", str(tmp_path / "w"), "v10")
    tree = Flow(tmp_path / "w", tmp_path, remote=history.environ["DVK_TRUST_REMOTES"], init=False)
    assert tree.data() == history.at_version[10] and tree.status().clean
    history.is_at(19)


def test_data_of_a_worktree_stays_out_of_git_while_another_has_the_path_from_before_dvk(
    history: History, tmp_path: Path
) -> None:
    """The ignore rule is one for all worktrees: without it `git add -A` would take the data into Git."""
    history.git("checkout", "-q", "-b", "before", "v0")
    history.git("rm", "-q", "a.bin.dvk")
    history.remove("a.bin")
    history.write({"a.bin": b"in Git itself"})
    history.git("add", "-f", "a.bin")
    history.git("commit", "-q", "-m", "as it was before dvk")
    history.git("checkout", "-q", "main")
    history.is_at(19)
    history.git("worktree", "add", "-q", str(tmp_path / "w"), "before")
    tree = Flow(tmp_path / "w", tmp_path, remote=history.environ["DVK_TRUST_REMOTES"], init=False)
    tree.checkout()
    assert tree.read("a.bin") == b"in Git itself"
    history.is_at(19)


def test_pull_brings_what_is_here_and_names_what_is_behind(history: History, tmp_path: Path) -> None:
    clone = history.clone(tmp_path / "clone")
    history.push()
    clone.pull()
    with clone.repo() as repo:
        install_hooks(repo)
    history.version({"a.bin": noise(1500, 99), "im/new": b"new"}, "a.bin", "im")
    done = subprocess.run(["git", "pull", "-q"], cwd=clone.top, env=clone.environ, capture_output=True, check=True)
    said = done.stderr.decode()
    assert "dvk: 2 behind (1.6" in said and "dvk pull" in said and clone.read("a.bin") == noise(400, 19)
    by_path = {p.path: p for p in clone.status().paths}
    assert by_path[b"a.bin"].behind and by_path[b"im"].behind
    history.push()
    clone.pull()
    assert clone.data() == history.data()
    clone.is_clean = History.is_clean.__get__(clone)  # type: ignore[attr-defined]
    clone.is_clean()  # type: ignore[attr-defined]


def test_edits_stay_git_succeeds_and_says_so(history: History) -> None:
    history.write({"a.bin": b"edited by hand", "im/mine": b"a file of my own"})
    done = subprocess.run(
        ["git", "checkout", "v9"], cwd=history.top, env=history.environ, capture_output=True, text=True, check=True
    )
    assert "dvk: a.bin: would be overwritten" in done.stderr
    assert history.read("a.bin") == b"edited by hand" and history.read("im/mine") == b"a file of my own"
    assert history.read("b.csv") == b"id\n4\n", "the other paths still arrive"


def test_what_the_store_has_by_chance_is_an_edit_too(history: History) -> None:
    """A file that somebody put back by hand is not what dvk put there, although it could be brought back."""
    history.write({"a.bin": noise(400, 3)})
    history.git("checkout", "-q", "v9")
    assert history.read("a.bin") == noise(400, 3)


def test_a_file_that_no_commit_has_stays_where_a_folder_is_tracked_now(history: History) -> None:
    """As for any other change: what was added and then reset may be the only one, and no hook takes it away."""
    history.git("checkout", "-q", "-b", "folder")
    history.git("rm", "-q", "a.bin.dvk")
    history.remove("a.bin")
    history.version({"a.bin/1": b"in a folder"}, "a.bin")
    history.git("checkout", "-q", "main")
    history.is_at(19)
    history.write({"a.bin": b"added, never committed"})
    history.add("a.bin")
    done = subprocess.run(
        ["git", "checkout", "-q", "-f", "folder"], cwd=history.top, env=history.environ, capture_output=True, text=True
    )
    assert done.returncode == 0 and history.read("a.bin") == b"added, never committed"
    assert "a.bin: stays as it is, since no commit leads back" in done.stderr
    history.checkout()
    assert history.read("a.bin/1") == b"in a folder"


def test_data_that_was_deleted_comes_back_from_a_version_without_any(history: History) -> None:
    """A list without a pointer is a list, and not the one before it."""
    history.git("checkout", "-q", "v9")
    history.git("checkout", "-q", "--orphan", "empty")
    history.git("rm", "-q", "-r", "-f", ".")
    history.git("commit", "-q", "--allow-empty", "-m", "nothing")
    history.git("checkout", "-q", "v9")
    history.is_at(9)
    history.remove("a.bin")
    history.git("checkout", "-q", "empty")
    history.git("checkout", "-q", "v9")
    history.is_at(9)


def test_a_killed_hook_is_continued_by_the_next_one(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two paths; then Git goes back to where the data came from, which is not in step any more."""
    monkeypatch.setitem(history.environ, "DVK_HOOKS", "0")
    history.git_repo.environ["DVK_HOOKS"] = "0"
    history.git("checkout", "-q", "v9")
    program = (
        "import os\nfrom dvk.commands import follow, materializer\nfrom dvk.commands.repo import Repo\n"
        "one = materializer.Materializer.one\ndone = []\n"
        "def dies(self, *a):\n    if done: os._exit(9)\n    done.append(1); one(self, *a)\n"
        "materializer.Materializer.one = dies\n"
        "follow.follow(Repo('.'), 'post-checkout')\n"
    )
    killed = subprocess.run(["python", "-P", "-c", program], cwd=history.top, env=history.environ, check=False)
    assert killed.returncode == 9 and history.data() not in (history.at_version[9], history.at_version[19])
    del history.git_repo.environ["DVK_HOOKS"]
    history.git("checkout", "-q", "main")
    history.is_at(19)


def test_the_switch_leaves_everything_alone_and_the_next_hook_catches_up(history: History) -> None:
    history.git_repo.environ["DVK_HOOKS"] = "0"
    history.git("checkout", "-q", "v2")
    assert history.data() == history.at_version[19] | {b"n.txt": history.at_version[2][b"n.txt"]}
    assert {p.path for p in history.status().paths if p.behind} == {b"a.bin", b"im"}
    del history.git_repo.environ["DVK_HOOKS"]
    history.git("checkout", "-q", "-b", "here")
    history.is_at(2)


def test_adding_all_that_changed_leaves_out_what_did_not_follow(history: History) -> None:
    """Else it would take back what somebody else committed, as data of the version before is still there."""
    history.git_repo.environ["DVK_HOOKS"] = "0"
    history.git("checkout", "-q", "v9")
    history.write({"b.csv": b"new here"})
    with history.repo() as repo:
        done = add(repo, update=True, on_event=history._listen)
    assert [p.path for p in done.paths] == [b"b.csv"]
    assert [n.subject for n in history.notes] == ["a.bin", "im"] and "did not follow" in history.notes[0].message
    history.add("a.bin")
    assert "M  a.bin.dvk" in history.git("status", "--porcelain"), "by name it is recorded"
