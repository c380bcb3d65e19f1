"""The Git side: the same answers from both ways of reading, and no version of a pointer overlooked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from gitkit import Repo, environ, pointer

from dvk.errors import (
    Busy,
    DataMissing,
    DvkError,
    FormatError,
    NotARepository,
    NotFound,
    Refused,
    UsageError,
)
from dvk.workspace.git import GitRepo, StagedChange
from dvk.workspace.git_program import GitProgram

ODD_NAMES = [
    b"a b",
    b" lead and trail ",
    b"-dash",
    b"--help",
    b"new\nline",
    b"tab\tname",
    b"\xff\xfe",
    b":(top)x",
    b"!not",
    b"#hash",
    b"star*[q]?",
    b"back\\slash",
    b'quo"te',
    "é".encode(),
    b"n" * 251,
]
if sys.platform == "darwin":  # its filesystems take UTF-8 only
    ODD_NAMES.remove(b"\xff\xfe")


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "work tree", tmp_path)


@pytest.fixture(params=["program", "library"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def find(repo: Repo, engine: str = "program", start: Path | None = None) -> GitRepo:
    env = repo.environ if engine == "program" else repo.environ | {"PATH": "/nonexistent"}
    found = GitRepo.find(str(start or repo.top), env)
    assert found is not None
    assert found.has_program == (engine == "program")
    return found


def real(path: Path) -> bytes:
    return os.fsencode(os.path.realpath(path))


# -- finding -------------------------------------------------------------------------------------


def test_a_repository_is_found_from_its_top_and_from_any_folder_below(repo: Repo, engine: str) -> None:
    below = repo.top / "a" / "b"
    below.mkdir(parents=True)
    for start in (repo.top, below):
        found = find(repo, engine, start)
        assert found.top == real(repo.top)
        assert found.git_dir == found.common_dir == real(repo.top / ".git")


def test_a_path_with_newlines_is_found_whole(tmp_path: Path, engine: str) -> None:
    repo = Repo(tmp_path / "two\nlines\n", tmp_path)
    assert find(repo, engine).top == real(repo.top)


def test_a_linked_worktree_has_its_own_git_dir_and_shares_the_common_one(
    repo: Repo, tmp_path: Path, engine: str
) -> None:
    repo.commit({"x": b"1"})
    repo.git("worktree", "add", "-q", str(tmp_path / "other"))
    found = find(repo, engine, tmp_path / "other")
    assert found.top == real(tmp_path / "other")
    assert found.common_dir == real(repo.top / ".git")
    assert found.git_dir.startswith(real(repo.top / ".git" / "worktrees"))
    assert find(repo).worktrees() == [real(repo.top), real(tmp_path / "other")]


def test_a_submodule_is_a_repository_of_its_own(repo: Repo, tmp_path: Path, engine: str) -> None:
    inner = Repo(tmp_path / "inner", tmp_path)
    inner.commit({"x.dvk": pointer(1)})
    repo.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner.top), "sub")
    repo.commit({"y.dvk": pointer(2)})
    found = find(repo, engine, repo.top / "sub")
    assert found.top == real(repo.top / "sub")
    head = found.head()
    assert head is not None
    assert [path for path, _ in found.pointers_at(head)] == [b"x.dvk"]
    outer = find(repo, engine)
    head = outer.head()
    assert head is not None
    assert [path for path, _ in outer.pointers_at(head)] == [b"y.dvk"]


def test_no_repository_is_none_and_a_missing_folder_is_named(tmp_path: Path, engine: str) -> None:
    env = environ(tmp_path, GIT_CEILING_DIRECTORIES=str(tmp_path.parent))
    if engine == "library":
        env["PATH"] = "/nonexistent"
    assert GitRepo.find(str(tmp_path), env) is None
    with pytest.raises(NotFound, match="not a folder"):
        GitRepo.find(str(tmp_path / "nowhere"), env)


def test_a_bare_repository_and_a_git_folder_are_refused(repo: Repo, tmp_path: Path, engine: str) -> None:
    repo.git("init", "-q", "--bare", str(tmp_path / "bare.git"))
    with pytest.raises(NotARepository, match="bare"):
        find(repo, engine, tmp_path / "bare.git")
    if engine == "program":
        with pytest.raises(NotARepository, match="inside a Git folder"):
            find(repo, engine, repo.top / ".git")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_repository_of_somebody_else_is_refused_with_gits_own_way_out(
    repo: Repo, tmp_path: Path, engine: str
) -> None:
    for folder, _, _ in os.walk(repo.top):
        os.chown(folder, 12345, 12345)
    with pytest.raises(Refused) as caught:
        find(repo, engine)
    assert "git config --global --add safe.directory" in caught.value.hint


def test_a_separate_git_dir_and_a_work_tree_set_by_hand_are_followed(repo: Repo, tmp_path: Path) -> None:
    repo.commit({"x.dvk": pointer(1)})
    elsewhere = tmp_path / "moved.git"
    (repo.top / ".git").rename(elsewhere)
    env = repo.environ | {"GIT_DIR": str(elsewhere), "GIT_WORK_TREE": str(repo.top)}
    found = GitRepo.find(str(repo.top), env)
    assert found is not None
    assert found.top == real(repo.top)
    assert [e.path for e in found.index_pointers()] == [b"x.dvk"]


def test_variables_of_a_hook_do_not_lead_to_the_hooks_repository(repo: Repo, tmp_path: Path) -> None:
    other = Repo(tmp_path / "other", tmp_path)
    other.commit({"o.dvk": pointer(9)})
    env = repo.environ | {"GIT_DIR": str(other.top / ".git"), "GIT_INDEX_FILE": str(other.top / ".git/index")}
    found = GitRepo.find(str(repo.top), env)
    assert found is not None
    assert found.top == real(repo.top)
    assert found.head() is None
    assert list(found.index_pointers()) == []


def test_a_git_program_in_the_work_tree_is_never_run(repo: Repo) -> None:
    """A8: neither through a relative entry of PATH nor through an absolute one, nor behind a link."""
    trap = repo.top / "bin" / "git"
    repo.write({"bin/git": b"#!/bin/sh\ntouch " + os.fsencode(repo.top.parent / "trapped") + b"\n"})
    trap.chmod(0o755)
    link = repo.top.parent / "linked"
    link.symlink_to(trap.parent)
    outside = repo.top.parent / "outside"
    outside.mkdir()
    (outside / "git").symlink_to(trap)
    env = repo.environ | {"PATH": f"bin:.::{trap.parent}:{link}:{outside}:{repo.environ['PATH']}"}
    found = GitRepo.find(str(repo.top), env)
    assert found is not None
    assert found.has_program
    assert not (repo.top.parent / "trapped").exists()
    only_traps = env | {"PATH": f"bin:.::{trap.parent}:{link}:{outside}"}
    assert GitProgram.find(only_traps, outside=real(repo.top)) is None


def test_looking_around_does_not_load_libgit2(repo: Repo) -> None:
    code = (
        "import os, sys; from dvk.workspace.git import GitRepo;"
        f"r = GitRepo.find({str(repo.top)!r}, os.environ); r.head(); r.known_pointers();"
        "assert 'pygit2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=repo.environ)


# -- reading commits, both ways ------------------------------------------------------------------


def test_one_level_of_a_folder_with_sizes_and_the_time_of_a_commit(repo: Repo, engine: str) -> None:
    repo.write({"a/b/c": b"deep", "a/x.dvk": pointer(1), "a-b": b"12345", "top": b""})
    os.symlink("top", repo.top / "a" / "link")
    repo.git("add", "-A")
    repo.git("commit", "-q", "-m", "tree")
    found = find(repo, engine)
    head = found.head()
    assert head is not None
    assert [(e.path, e.mode) for e in found.children_at(head, b"a")] == [
        *((b"a/b", 0o40000), (b"a/link", 0o120000), (b"a/x.dvk", 0o100644))
    ]
    top = found.children_at(head, b"")
    assert {e.path for e in top} >= {b"a", b"a-b", b"top"}
    assert found.children_at(head, b"nothing") == found.children_at(head, b"top") == []
    files = [e for e in top if e.is_file]
    assert dict(zip([e.path for e in files], found.blob_sizes([e.oid for e in files]), strict=True)) == {
        **{e.path: len(found.read_blob(e.oid)) for e in files}
    }
    assert found.blob_sizes([]) == []
    with pytest.raises(DataMissing):
        found.blob_sizes(["1" * 40])
    assert found.commit_time(head).timestamp() == int(repo.git("show", "-s", "--format=%ct", "HEAD"))
    assert [e.path for e in found.files_at(head, b"a")] == [b"a/b/c", b"a/link", b"a/x.dvk"]


def test_revisions_resolve_to_commits(repo: Repo, engine: str) -> None:
    found = find(repo, engine)
    assert found.head() is None
    assert found.branch() == "main"
    first = repo.commit({"x": b"1"})
    repo.git("tag", "-a", "v1", "-m", "one")
    second = repo.commit({"x": b"2"})
    repo.git("branch", "tabby/cat")
    assert found.head() == second
    for rev, commit in {
        "HEAD": second,
        "HEAD~1": first,
        "v1": first,
        first[:10]: first,
        "tabby/cat": second,
        "main^": first,
        ":/a commit": second,
    }.items():
        assert found.resolve(rev) == commit
    repo.git("checkout", "-q", "v1")
    assert found.branch() is None


@pytest.mark.parametrize("rev", ["nothing", "HEAD~9", "HEAD:x", "a..b", "^HEAD", "HEAD^{tree}", "0" * 40, "x y"])
def test_a_revision_that_does_not_exist_is_named(repo: Repo, engine: str, rev: str) -> None:
    repo.commit({"x": b"1"})
    with pytest.raises(NotFound) as caught:
        find(repo, engine).resolve(rev)
    assert caught.value.subject == rev
    assert caught.value.hint


@pytest.mark.parametrize("rev", ["", "-x", "--all", "--output=/tmp/x", "a\nb", "a\0b", "\x1b[31m"])
def test_a_revision_cannot_be_an_option_or_hold_control_characters(repo: Repo, engine: str, rev: str) -> None:
    found = find(repo, engine)
    with pytest.raises(UsageError):
        found.resolve(rev)
    if engine == "program":
        with pytest.raises(UsageError):
            list(found.pointer_versions([rev]))


def test_all_names_come_back_as_they_are(repo: Repo, engine: str) -> None:
    """Names of any bytes, at the top and in a folder; only plain files that end in .dvk count."""
    files: dict[str | bytes, bytes] = {}
    for i, name in enumerate(ODD_NAMES):
        files[name + b".dvk"] = pointer(i)
        files[b"in " + name[:240] + b"/p.dvk"] = pointer(100 + i)
    repo.write({"plain.txt": b"t", "d/.dvk": b"no pointer"})
    (repo.top / "link.dvk").symlink_to("/etc/passwd")
    head = repo.commit(files)
    found = find(repo, engine)
    commit = found.resolve(head)
    listed = dict(found.pointers_at(commit))
    assert set(listed) == set(files)
    texts = found.read_blobs(list(listed.values()))
    assert dict(zip(listed, texts, strict=True)) == files
    for path, data in files.items():
        assert found.blob_at(commit, os.fsencode(path)) == data
    for folder in {os.fsencode(p).rpartition(b"/")[0] for p in files} - {b""}:
        assert [p for p, _ in found.pointers_at(commit, folder)] == [folder + b"/p.dvk"]
    assert found.head_pointers() == listed


def test_what_is_no_plain_file_has_no_content(repo: Repo, engine: str) -> None:
    repo.write({"d/e/f": b"1", "g": b"2"})
    (repo.top / "l").symlink_to("g")
    found = find(repo, engine)
    commit = found.resolve(repo.commit({}))
    for path in (b"nothing", b"d", b"d/e", b"l", b"g/x", b"d/e/f/x", b"d/e/", b"./g", b"d/../g"):
        assert found.blob_at(commit, path) is None
    assert found.blob_at(commit, b"d/e/f") == b"1"
    entry = found.entry_at(commit, b"l")
    assert entry is not None
    assert entry.mode == 0o120000
    assert not entry.is_file
    entry = found.entry_at(commit, b"d/e")
    assert entry is not None
    assert entry.mode == 0o040000


def test_many_blobs_come_in_order_and_a_bad_one_does_not_spoil_the_next_question(repo: Repo, engine: str) -> None:
    commit = repo.commit({f"f{i:03}.dvk": pointer(i) for i in range(200)} | {"big": bytes(70_000)})
    found = find(repo, engine)
    head = found.resolve(commit)
    oids = [oid for _, oid in found.pointers_at(head)]
    expected = [pointer(i) for i in range(200)]
    assert list(found.read_blobs(oids)) == expected
    with pytest.raises(DataMissing, match="does not have this object"):
        list(found.read_blobs([oids[0], "12" * 20, oids[1]]))
    with pytest.raises(FormatError, match="at most 65,536"):
        found.blob_at(head, b"big", max_bytes=65_536)
    with pytest.raises(FormatError, match="commit"):
        found.read_blob(head)
    assert list(found.read_blobs(oids)) == expected
    found.close()
    assert list(found.read_blobs(oids)) == expected


def test_blobs_can_be_read_from_many_threads(repo: Repo, engine: str) -> None:
    commit = repo.commit({f"f{i:03}.dvk": pointer(i) for i in range(100)})
    found = find(repo, engine)
    oids = [oid for _, oid in found.pointers_at(found.resolve(commit))]
    results: list[list[bytes]] = []
    threads = [threading.Thread(target=lambda: results.append(list(found.read_blobs(oids)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[pointer(i) for i in range(100)]] * 6


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_reads_by_a_process_of_its_own(repo: Repo, engine: str) -> None:
    commit = repo.commit({"x.dvk": pointer(1)})
    found = find(repo, engine)
    head = found.resolve(commit)
    assert found.blob_at(head, b"x.dvk") == pointer(1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if found.blob_at(head, b"x.dvk") == pointer(1) else 1
            found.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert found.blob_at(head, b"x.dvk") == pointer(1)


def test_a_sha256_repository_reads_by_git_and_is_explained_without(tmp_path: Path) -> None:
    repo = Repo(tmp_path / "new", tmp_path, object_format="sha256")
    head = repo.commit({"x.dvk": pointer(1)})
    assert len(head) == 64
    found = find(repo)
    assert found.object_format == "sha256"
    assert found.blob_at(found.resolve("HEAD"), b"x.dvk") == pointer(1)
    assert [v.oid for v in found.pointer_versions(["HEAD"])] == [e.oid for e in found.index_pointers()]
    with pytest.raises(NotARepository) as caught:
        find(repo, "library")
    assert "git program" in caught.value.hint


def test_without_the_git_program_what_needs_it_says_so(repo: Repo) -> None:
    repo.commit({"x.dvk": pointer(1)})
    found = find(repo, "library")
    for ask in (found.known_pointers, found.staged_changes, lambda: found.history(b"x.dvk")):
        with pytest.raises(NotFound, match="git program was not found"):
            ask()
    repo.git("config", "my.key", "value")
    assert find(repo, "library").config_get("my.key") == "value"
    assert found.config_get("no.key") is None


# -- history -------------------------------------------------------------------------------------


def reachable_versions(repo: Repo, *revs: str) -> set[tuple[bytes, str]]:
    """The slow and certain answer: every pointer of every tree of every commit."""
    found = set()
    for commit in repo.git("rev-list", *revs).split():
        for row in repo.git("ls-tree", "-r", "-z", commit).split("\0")[:-1]:
            meta, _, path = row.partition("\t")
            if path.endswith(".dvk"):
                found.add((os.fsencode(path), meta.split()[2]))
    return found


def make_tangle(repo: Repo) -> None:
    """Merges of every kind: kept one side, kept none, both, an octopus, a side branch that was thrown away."""
    repo.commit({"x.dvk": pointer(0), "d/y.dvk": pointer(1), "code": b"1"})
    repo.git("branch", "thrown")
    repo.git("branch", "side")
    repo.git("branch", "third")
    repo.commit({"x.dvk": pointer(2)}, "ours")
    repo.git("checkout", "-q", "thrown")
    repo.commit({"x.dvk": pointer(3), "gone.dvk": pointer(4)}, "only ever on a branch that a merge dropped")
    repo.git("checkout", "-q", "side")
    repo.commit({"x.dvk": pointer(5)}, "theirs")
    repo.git("checkout", "-q", "third")
    repo.commit({"d/z.dvk": pointer(6)}, "new file")
    repo.git("checkout", "-q", "main")
    repo.git("merge", "-q", "-s", "ours", "-m", "drop", "thrown")
    repo.git("merge", "-q", "--no-commit", "side", ok=False)
    repo.write({"x.dvk": pointer(7)})
    repo.commit({}, "a version that neither side had")
    repo.git("merge", "-q", "--no-commit", "third")
    repo.commit({"evil.dvk": pointer(8)}, "a file that only the merge brought")
    repo.git("rm", "-q", "d/y.dvk")
    repo.commit({}, "removed")
    repo.git("mv", "d/z.dvk", "moved.dvk")
    repo.commit({"not-a-pointer.txt": b"x"}, "renamed")


def test_every_version_in_history_is_found(repo: Repo) -> None:
    make_tangle(repo)
    found = find(repo)
    versions = list(found.pointer_versions(["HEAD"]))
    assert {(v.path, v.oid) for v in versions if v.oid} == reachable_versions(repo, "HEAD")
    assert {v.path for v in versions if v.oid is None} == {b"d/y.dvk", b"d/z.dvk"}


def test_settings_of_the_user_do_not_change_which_versions_are_found(repo: Repo) -> None:
    make_tangle(repo)
    expected = list(find(repo).pointer_versions(["HEAD"]))
    for key, value in {
        "log.showRoot": "false",
        "log.follow": "true",
        "log.showSignature": "true",
        "log.diffMerges": "off",
        "diff.renames": "copies",
        "diff.relative": "true",
        "diff.orderFile": "/nowhere",
        "diff.noprefix": "true",
        "color.ui": "always",
        "core.quotePath": "true",
        "format.pretty": "%h",
        "log.date": "relative",
    }.items():
        repo.git("config", key, value)
    assert list(find(repo).pointer_versions(["HEAD"])) == expected
    assert len(list(find(repo).history(b"x.dvk"))) >= 4


def test_ranges_and_paths_narrow_what_is_found(repo: Repo) -> None:
    first = repo.commit({"x.dvk": pointer(1), "a*/y.dvk": pointer(2), "ab/y.dvk": pointer(3)})
    repo.commit({"x.dvk": pointer(4), "a*/y.dvk": pointer(5), "a*/deep/z.dvk": pointer(6)})
    found = find(repo)
    new = {v.path for v in found.pointer_versions([f"{first}..HEAD"])}
    assert new == {b"x.dvk", b"a*/y.dvk", b"a*/deep/z.dvk"}
    assert new == {v.path for v in found.pointer_versions(["HEAD", f"^{first}"])}
    assert len(list(found.pointer_versions(["HEAD"], paths=[b"a*"]))) == 3
    assert len(list(found.pointer_versions(["HEAD"], paths=[b"x"]))) == 2
    assert len(list(found.pointer_versions(["HEAD"], paths=[b"a*/y", b"x"]))) == 4
    assert len(list(found.pointer_versions(["HEAD"], paths=[b""]))) == 6
    assert len(list(found.pointer_versions(["HEAD"], paths=[b"x", *(b"n%d" % i for i in range(9000))]))) == 2
    assert list(found.pointer_versions([])) == []
    with pytest.raises(NotFound, match="no such revision"):
        list(found.pointer_versions(["nothing"]))


def test_leaving_history_early_ends_git(repo: Repo) -> None:
    for i in range(5):
        repo.commit({f"x{j}.dvk": pointer(i * 10 + j) for j in range(10)})
    versions = find(repo).pointer_versions(["HEAD"])
    assert next(versions).oid
    versions.close()  # type: ignore[attr-defined]


def test_a_shallow_clone_has_the_versions_that_it_holds(repo: Repo, tmp_path: Path) -> None:
    repo.commit({"x.dvk": pointer(1)})
    repo.commit({"x.dvk": pointer(2), "y.dvk": pointer(3)})
    repo.commit({"x.dvk": pointer(4)})
    repo.git("clone", "-q", "--depth", "2", f"file://{repo.top}", str(tmp_path / "shallow"))
    clone = Repo(tmp_path / "shallow", tmp_path, init=False)
    versions = {(v.path, v.oid) for v in find(clone).pointer_versions(["HEAD"])}
    assert versions == reachable_versions(clone, "HEAD")
    assert len(versions) == 3


@pytest.mark.parametrize("kind", ["blob:none", "tree:0"])
def test_a_partial_clone_fetches_what_is_asked_for_and_says_what_is_missing(
    repo: Repo, tmp_path: Path, kind: str
) -> None:
    repo.commit({"x.dvk": pointer(1)})
    repo.commit({"x.dvk": pointer(2)})
    repo.git("config", "uploadpack.allowFilter", "true")
    repo.git("config", "uploadpack.allowAnySHA1InWant", "true")
    repo.git("clone", "-q", f"--filter={kind}", f"file://{repo.top}", str(tmp_path / "partial"))
    clone = Repo(tmp_path / "partial", tmp_path, init=False)
    found = find(clone)
    versions = list(found.pointer_versions(["HEAD"]))
    assert list(found.read_blobs([v.oid for v in versions if v.oid])) == [pointer(2), pointer(1)]
    repo.git("clone", "-q", f"--filter={kind}", f"file://{repo.top}", str(tmp_path / "offline"))
    offline = Repo(tmp_path / "offline", tmp_path, init=False)
    offline.git("remote", "set-url", "origin", "file:///nowhere")
    found = find(offline)
    with pytest.raises(DvkError) as caught:
        list(found.read_blobs([v.oid for v in found.pointer_versions(["HEAD"]) if v.oid]))
    assert "partial" in f"{caught.value.message} {caught.value.hint}"


def test_history_of_a_path_is_newest_first_with_its_people_and_dates(repo: Repo) -> None:
    repo.commit({"x.dvk": pointer(1)}, "première\n\nbody")
    repo.commit({"other": b"1"}, "elsewhere")
    second = repo.commit({"x.dvk": pointer(2)}, "line\x1b[31m")
    repo.git("rm", "-q", "x.dvk")
    repo.commit({}, "removed")
    commits = list(find(repo).history(b"x.dvk"))
    assert [c.subject for c in commits] == ["removed", "line\x1b[31m", "première"]
    assert commits[0].oid is None
    assert commits[1].id == second
    assert (commits[2].author, commits[2].email) == ("Ada", "ada@example.org")
    date = commits[2].date
    assert date is not None
    assert date.utcoffset() == timedelta(hours=2)
    assert datetime(2023, 11, 14, tzinfo=UTC) < date < commits[1].date  # type: ignore[operator]
    assert [c.subject for c in find(repo).history(b"x.dvk", "HEAD~2")] == ["première"]
    assert list(find(repo).history(b"never.dvk")) == []


# -- index ---------------------------------------------------------------------------------------


def test_index_and_new_pointers_come_from_one_look(repo: Repo) -> None:
    repo.commit({"a.dvk": pointer(1), "d/b.dvk": pointer(2), "code.py": b"1", ".gitignore": b"out\n"})
    repo.write({"new.dvk": pointer(3), "d/e/new.dvk": pointer(4), "out/ignored.dvk": pointer(5)})
    # A name that looks like a row of the index must not become one.
    forged = b"H 100644 " + b"1" * 40 + b" 0\tforged.dvk"
    repo.write({forged: pointer(6)})
    found = find(repo)
    tracked, new = found.known_pointers()
    assert [(e.path, e.stage) for e in tracked] == [(b"a.dvk", 0), (b"d/b.dvk", 0)]
    assert set(new) == {b"new.dvk", b"d/e/new.dvk", forged}
    tracked, new = found.known_pointers([b"d"])
    assert ([e.path for e in tracked], new) == ([b"d/b.dvk"], [b"d/e/new.dvk"])
    assert [e.path for e in found.index_pointers([b"a"])] == [b"a.dvk"]
    assert found.untracked_pointers([b"a"]) == []
    assert [found.read_blob(e.oid) for e in found.index_pointers()] == [pointer(1), pointer(2)]


def test_a_conflict_shows_its_three_stages(repo: Repo) -> None:
    repo.commit({"x.dvk": pointer(1)})
    repo.git("checkout", "-q", "-b", "side")
    repo.commit({"x.dvk": pointer(2)})
    repo.git("checkout", "-q", "main")
    repo.commit({"x.dvk": pointer(3)})
    repo.git("merge", "-q", "side", ok=False)
    found = find(repo)
    entries = list(found.index_pointers())
    assert [e.stage for e in entries] == [1, 2, 3]
    assert [found.read_blob(e.oid) for e in entries] == [pointer(1), pointer(3), pointer(2)]
    assert found.staged_changes() == []
    repo.write({"x.dvk": pointer(4)})
    found.stage([b"x.dvk"])
    assert [e.stage for e in found.index_pointers()] == [0]


def test_staging_takes_new_changed_and_gone_files_of_any_name(repo: Repo) -> None:
    repo.commit({"old.dvk": pointer(1), "gone.dvk": pointer(2), "same.dvk": pointer(3)})
    repo.write({name + b".dvk": pointer(i) for i, name in enumerate(ODD_NAMES)})
    repo.write({"old.dvk": pointer(4)})
    (repo.top / "gone.dvk").unlink()
    found = find(repo)
    paths = [name + b".dvk" for name in ODD_NAMES] + [b"old.dvk", b"gone.dvk", b"same.dvk", b"never.dvk"]
    assert found.stage(paths) == {}
    changes = {c.path: c for c in found.staged_changes()}
    assert set(changes) == {name + b".dvk" for name in ODD_NAMES} | {b"old.dvk", b"gone.dvk"}
    assert changes[b"gone.dvk"].index is None
    assert changes[b"-dash.dvk"].head is None
    assert repo.git("diff", "--name-only") == ""
    found.unstage_removed([b"-dash.dvk", b"old.dvk", b"unknown.dvk"])
    assert (repo.top / "-dash.dvk").exists()
    changes = {c.path: c for c in found.staged_changes()}
    assert b"-dash.dvk" not in changes
    assert changes[b"old.dvk"].index is None


def test_before_the_first_commit_everything_staged_is_new(repo: Repo) -> None:
    repo.write({"x.dvk": pointer(1)})
    found = find(repo)
    found.stage([b"x.dvk"])
    [entry] = found.index_pointers()
    assert found.staged_changes() == [StagedChange(b"x.dvk", None, entry.oid)]
    assert found.head_pointers() == {}


def test_an_ignore_rule_does_not_hold_a_pointer_back_and_is_named(repo: Repo) -> None:
    repo.commit({".gitignore": b"\n*.dvk\n!keep.dvk\n/out\n"})
    repo.write({"x.dvk": pointer(1), "keep.dvk": pointer(2), "out/y.dvk": pointer(3)})
    found = find(repo)
    assert found.stage([b"x.dvk", b"keep.dvk", b"out/y.dvk"]) == {
        b"x.dvk": ".gitignore:2: *.dvk",
        b"out/y.dvk": ".gitignore:4: /out",
    }
    assert [e.path for e in found.index_pointers()] == [b"keep.dvk", b"out/y.dvk", b"x.dvk"]
    assert found.stage([b"x.dvk"]) == {}, "a rule is named once, not each time"
    assert set(found.is_ignored([b"x.dvk", b"keep.dvk", b"z"])) == {b"x.dvk"}
    assert found.is_ignored([b"x.dvk"], tracked_too=False) == {}
    repo.write({".gitignore": b"\\:(top)x\n\\!not\n-dash\nnew?line\n"})
    names = [b":(top)x", b"!not", b"-dash", b"new\nline", b"plain"]
    assert set(found.is_ignored(names)) == set(names) - {b"plain"}
    assert found.is_ignored([]) == {}


def test_what_git_tracks_under_a_path_is_listed_without_pointers(repo: Repo) -> None:
    repo.commit({"d/a.py": b"1", "d/e/b.py": b"2", "d/x.dvk": pointer(1), "dx/c": b"3", "*": b"4"})
    found = find(repo)
    assert found.tracked_under(b"d") == [b"d/a.py", b"d/e/b.py"]
    assert found.tracked_under(b"d/a.py") == [b"d/a.py"]
    assert found.tracked_under(b"*") == [b"*"], "a name is no pattern"
    assert found.tracked_under(b"nothing") == []
    assert len(found.tracked_under(b"")) == 4


def test_a_held_index_is_busy_and_nothing_is_lost(repo: Repo) -> None:
    repo.commit({"x.dvk": pointer(1)})
    repo.write({"x.dvk": pointer(2)})
    (repo.top / ".git/index.lock").touch()
    found = find(repo)
    with pytest.raises(Busy) as caught:
        found.stage([b"x.dvk"])
    assert caught.value.subject.endswith("index.lock")
    assert found.staged_changes() == []
    (repo.top / ".git/index.lock").unlink()
    found.stage([b"x.dvk"])
    assert len(found.staged_changes()) == 1


def test_a_lock_that_is_let_go_soon_is_waited_for(repo: Repo) -> None:
    repo.write({"x.dvk": pointer(1)})
    lock = repo.top / ".git/index.lock"
    lock.touch()
    timer = threading.Timer(0.08, lock.unlink)
    timer.start()
    find(repo).stage([b"x.dvk"])
    timer.join()
    assert len(list(find(repo).index_pointers())) == 1


def test_sparse_checkouts_are_read_whole(repo: Repo) -> None:
    repo.commit({"a/x.dvk": pointer(1), "b/y.dvk": pointer(2)})
    repo.git("sparse-checkout", "set", "--cone", "--sparse-index", "a")
    assert not (repo.top / "b").exists()
    assert [e.path for e in find(repo).index_pointers()] == [b"a/x.dvk", b"b/y.dvk"]


def test_git_configuration_and_paths(repo: Repo) -> None:
    found = find(repo)
    assert found.config_get("merge.dvk.driver") is None
    found.config_set("merge.dvk.driver", "dvk merge-driver %O %A %B\nx")
    assert found.config_get("merge.dvk.driver") == "dvk merge-driver %O %A %B\nx"
    assert found.git_path("info/exclude") == real(repo.top) + b"/.git/info/exclude"
    repo.git("config", "core.hooksPath", "my hooks")
    assert found.git_path("hooks") == real(repo.top) + b"/my hooks"
    repo.commit({"x": b"1"})
    repo.git("branch", "b/c")
    assert [name for name, _ in found.local_branches()] == ["b/c", "main"]
    assert {commit for _, commit in found.local_branches()} == {found.head()}
