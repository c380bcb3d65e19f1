"""Data stays out of Git at every revision, and our patterns mean what Git says they mean."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gitkit import Repo, pointer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dvk.errors import FormatError, Refused
from dvk.workspace.gitignore import Pattern
from dvk.workspace.ignore import (
    ATTRIBUTES_LINE,
    IgnoreRules,
    ensure_attributes,
    exclude_pattern,
    excluded,
    update_exclude,
)

ODD_PATHS = [
    b"plain.csv",
    b"data/deep/x y.csv",
    b"trailing space ",
    b"two spaces  ",
    b"a\\ ",
    b"!bang",
    b"#hash",
    b"star*",
    b"q?",
    b"[a-z]",
    b"back\\slash",
    b"ends\\",
    b"new\nline",
    b"cr\r",
    b"tab\t",
    b"\xff\xfe",
    "é".encode(),
    b"-dash",
    b"**",
    b"d/**/x",
    b'"quoted"',
    b" lead",
]
if sys.platform == "darwin":  # its filesystems take UTF-8 only
    ODD_PATHS.remove(b"\xff\xfe")


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "r", tmp_path)


def git_dir(repo: Repo) -> bytes:
    return os.fsencode(repo.top / ".git")


def status(repo: Repo, cwd: Path | None = None) -> str:
    return repo.git("status", "--porcelain", "-z", "-uall", cwd=cwd)


def test_hidden_data_is_not_seen_by_status_and_not_taken_by_add(repo: Repo) -> None:
    repo.commit({"code.py": b"1"})
    files: dict[str | bytes, bytes] = {}
    for path in ODD_PATHS:
        files[path] = b"data"
        files[b"dir " + path + b"/inner"] = b"data"
    repo.write(files)
    update_exclude(git_dir(repo), add=[*ODD_PATHS, *(b"dir " + path for path in ODD_PATHS)])
    assert status(repo) == ""
    repo.git("add", "-A")
    assert status(repo) == ""


def test_only_the_named_path_is_hidden(repo: Repo) -> None:
    """Neither a namesake in another folder, nor what a pattern in the name would match, nor the pointer."""
    repo.write({"x": b"", "d/x": b"", "starry": b"", "star*": b"", "a": b"", "[a-z]": b"", "x.dvk": pointer(1)})
    update_exclude(git_dir(repo), add=[b"x", b"star*", b"[a-z]"])
    assert set(status(repo).split("\0")[:-1]) == {"?? d/x", "?? starry", "?? a", "?? x.dvk"}


def test_data_stays_hidden_at_older_revisions_and_in_other_worktrees(repo: Repo, tmp_path: Path) -> None:
    first = repo.commit({"code.py": b"1"})
    update_exclude(git_dir(repo), add=[b"data.csv"])
    repo.write({"data.csv": b"1,2"})
    repo.commit({"data.csv.dvk": pointer(1)})
    repo.git("checkout", "-q", first)
    assert (repo.top / "data.csv").exists()
    assert status(repo) == ""
    repo.git("add", "-A")
    assert status(repo) == ""
    other = tmp_path / "other"
    repo.git("worktree", "add", "-q", str(other), "main")
    (other / "data.csv").write_bytes(b"1,2")
    assert status(repo, cwd=other) == ""


def test_lines_of_others_stay_byte_for_byte(repo: Repo) -> None:
    exclude = repo.top / ".git/info/exclude"
    for theirs in (b"# comment\r\n*.log\n\n/x\\ \n", b"*.log", b"", b"\xff\n\n\n"):
        exclude.write_bytes(theirs)
        assert update_exclude(git_dir(repo), add=[b"b", b"a", b"a"])
        text = exclude.read_bytes()
        assert text.startswith(theirs)
        assert text.endswith(b"\n/a\n/b\n# <<< dvk\n")
        exclude.write_bytes(text + b"# theirs, later\nz")
        assert not update_exclude(git_dir(repo), add=[b"a"], remove=[b"never"])
        assert update_exclude(git_dir(repo), add=[b"c"], remove=[b"a"])
        assert excluded(git_dir(repo)) == {b"/b", b"/c"}
        assert exclude.read_bytes().endswith(b"\n/b\n/c\n# <<< dvk\n# theirs, later\nz")
        assert update_exclude(git_dir(repo), remove=[b"b", b"c"])
        assert exclude.read_bytes().removesuffix(b"# theirs, later\nz").rstrip(b"\n") == theirs.rstrip(b"\n")


def test_a_block_that_was_copied_or_cut_is_one_again(repo: Repo) -> None:
    exclude = repo.top / ".git/info/exclude"
    exclude.write_bytes(b"")
    update_exclude(git_dir(repo), add=[b"a"])
    block = exclude.read_bytes()
    exclude.write_bytes(block + b"mid\n" + block.replace(b"/a", b"/b").replace(b"# <<< dvk\n", b""))
    update_exclude(git_dir(repo), add=[b"c"])
    assert excluded(git_dir(repo)) == {b"/a", b"/b", b"/c"}
    assert exclude.read_bytes().count(b">>> dvk") == 1
    assert b"mid\n" in exclude.read_bytes()


def test_a_missing_info_folder_is_made_and_a_linked_exclude_stays_linked(repo: Repo, tmp_path: Path) -> None:
    exclude = repo.top / ".git/info/exclude"
    exclude.unlink()
    exclude.parent.rmdir()
    assert not update_exclude(git_dir(repo), remove=[b"a"])
    assert update_exclude(git_dir(repo), add=[b"a"])
    mine = tmp_path / "my-exclude"
    exclude.rename(mine)
    exclude.symlink_to(mine)
    assert update_exclude(git_dir(repo), add=[b"b"])
    assert exclude.is_symlink()
    assert b"/a\n/b\n" in mine.read_bytes()


names = st.binary(min_size=1, max_size=12).filter(lambda n: b"\0" not in n and b"/" not in n and n not in (b".", b".."))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(paths=st.lists(names, min_size=1, max_size=12, unique=True))
@example(paths=[b"\\\\ ", b" \r", b"\r", b"\n", b"a \n"])
def test_git_ignores_every_name_that_is_excluded(repo_for_properties: Repo, paths: list[bytes]) -> None:
    repo = repo_for_properties
    (repo.top / ".git/info/exclude").write_bytes(b"")
    update_exclude(git_dir(repo), add=paths)
    ignored = check_ignore(repo, paths)
    assert ignored == set(paths)
    others = [b"other/" + path for path in paths]
    assert not check_ignore(repo, others)


@pytest.fixture(scope="module")
def repo_for_properties(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    base = tmp_path_factory.mktemp("ignore")
    return Repo(base / "r", base)


def check_ignore(repo: Repo, paths: list[bytes]) -> set[bytes]:
    """The paths (a slash at the end for a folder) that Git ignores, by its own word."""
    done = subprocess.run(
        ["git", "check-ignore", "-z", "--stdin", "--no-index"],
        input=b"".join(b"./" + p + b"\0" for p in paths),
        cwd=repo.top,
        env=repo.environ,
        capture_output=True,
    )
    assert done.returncode in (0, 1), done.stderr
    return {p[2:] for p in done.stdout.split(b"\0")[:-1]}


# -- .dvkignore ----------------------------------------------------------------------------------

_PLAIN = [b"a", b"b", b"A", b".", b" ", b"#", b"!", b"-", b"\xc3\xa9", b"\\*", b"\\a", b"\\ "]
_WILD = [b"*", b"?", b"[ab]", b"[!a]", b"[^b]", b"[a-c]", b"[]-]", b"[[:alpha:]]", b"[a\\]]", b"["]
_atoms = st.sampled_from(_PLAIN) | st.sampled_from(_WILD)
_segments = st.lists(_atoms, min_size=1, max_size=4).map(b"".join).filter(lambda s: b"**" not in s)
_patterns = st.builds(
    lambda bang, lead, parts, tail: bang + lead + b"/".join(parts) + tail,
    st.sampled_from([b"", b"", b"", b"!"]),
    st.sampled_from([b"", b"", b"/"]),
    st.lists(st.one_of(_segments, st.just(b"**")), min_size=1, max_size=4),
    st.sampled_from([b"", b"", b"/", b" ", b"  "]),
)
_parts = st.text("abcA.*] -[#!\\", min_size=1, max_size=3).map(str.encode) | st.just("é".encode())
_paths = st.lists(_parts.filter(lambda p: p not in (b".", b"..")), min_size=1, max_size=4).map(b"/".join)


def _by_our_rules(rules: IgnoreRules, path: bytes) -> bool:
    """As a walk asks: each folder first, and nothing below one that is left out."""
    parts = path.split(b"/")
    above = (b"/".join(parts[:i]) for i in range(1, len(parts)))
    return any(rules.match(p, True) for p in above) or rules.match(path, False)


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    lines=st.lists(_patterns, min_size=1, max_size=3),
    paths=st.lists(_paths, min_size=1, max_size=20, unique=True),
)
@example(lines=[b"a/**"], paths=[b"a", b"a/b", b"a/b/c", b"b/a/b"])
@example(lines=[b"**/a/**/b"], paths=[b"a/b", b"x/a/b", b"a/x/b", b"x/a/y/z/b", b"a", b"b"])
@example(lines=[b"*.a", b"!b.a"], paths=[b"x.a", b"b.a", b"d/b.a"])
@example(lines=[b"a/", b"/b/", b"\\#x", b"#y"], paths=[b"a", b"d/a", b"b/x", b"#x", b"#y", b"y"])
@example(lines=[b"a b ", b"c\\ "], paths=[b"a b", b"a b ", b"c ", b"c"])
@example(lines=[b"**", b"!a"], paths=[b"a", b"b", b"c/a"])
@example(lines=[b"[a-", b"\\"], paths=[b"a", b"[a-", b"\\"])
@example(lines=[b"a*b*c/d"], paths=[b"abc/d", b"axbyc/d", b"abcc/d", b"ab/c/d"])
def test_patterns_mean_what_git_says(repo_for_properties: Repo, lines: list[bytes], paths: list[bytes]) -> None:
    repo = repo_for_properties
    exclude = repo.top / ".git/info/exclude"
    exclude.write_bytes(b"".join(line + b"\n" for line in lines))
    rules = IgnoreRules.parse(exclude.read_bytes())
    assert {p for p in paths if _by_our_rules(rules, p)} == check_ignore(repo, paths)


def test_comments_line_ends_and_a_byte_order_mark_are_read_as_git_does() -> None:
    rules = IgnoreRules.parse(b"\xef\xbb\xbf*.tmp\r\n# *.csv\r\n\r\n/out/\r\n")
    assert rules.match(b"d/x.tmp", False)
    assert not rules.match(b"x.csv", False)
    assert rules.match(b"out", True)
    assert not rules.match(b"out", False)
    assert len(rules.patterns) == 2


def test_clutter_of_desktops_is_left_out_unless_asked_for() -> None:
    rules = IgnoreRules()
    for name in (b".DS_Store", b"a/Thumbs.db", b"a/b/desktop.ini", b"._x.csv"):
        assert rules.match(name, False)
    for name in (b"x", b".git", b".hidden", b"_x", b"DS_Store"):
        assert not rules.match(name, False)
    assert not rules.match(b"Thumbs.db", True), "a folder of that name is the user's own"
    assert not IgnoreRules.parse(b"!Thumbs.db\n").match(b"a/Thumbs.db", False)


_ODD = st.sampled_from(
    [b"._", b"._a", b".`", b".DS_Store", b"Thumbs.db", b"desktop.ini", b".DS_Stor", b"a", b".", b"~"]
)


@given(
    keys=st.sets(st.tuples(_ODD, st.sampled_from([b"", b"x", b"/"])).map(b"".join)),
    text=st.sampled_from([b"", b"*x\n", b"!._*\n"]),
)
def test_many_names_at_once_are_left_out_as_each_alone_would_be(keys: set[bytes], text: bytes) -> None:
    rules = IgnoreRules.parse(text)
    each = [k for k in sorted(keys) if rules.match(b"data/" + k.rstrip(b"/"), k.endswith(b"/"))]
    assert rules.ignored(b"data/", sorted(keys)) == each


def test_names_of_any_bytes_are_matched_as_bytes() -> None:
    rules = IgnoreRules.parse(b"\xff*\nnew?line\n")
    assert rules.match(b"d/\xff\xfe", False)
    assert rules.match(b"new\nline", False)
    assert not rules.match(b"x\n", False)


@pytest.mark.parametrize(
    "pattern",
    [b"*a" * 40 + b"b", b"**/a/" * 30 + b"b", b"/" + b"a*/" * 30 + b"b", b"?*" * 100 + b"x", b"[a*" * 999],
)
def test_no_pattern_takes_long(pattern: bytes) -> None:
    """A30: a hostile .dvkignore costs no time to speak of."""
    started = time.process_time()
    parsed = Pattern.parse(pattern)
    for path in (b"a" * 255, b"/".join([b"a"] * 2000), b"/".join([b"a" * 50] * 80)):
        if parsed:
            assert not parsed.matches(path, is_dir=False)
    assert time.process_time() - started < 1


def test_rules_are_loaded_from_the_top_and_bounded(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path)
    assert IgnoreRules.load(top) == IgnoreRules()
    (tmp_path / ".dvkignore").write_bytes(b"*.tmp\n")
    assert IgnoreRules.load(top).match(b"x.tmp", False)
    (tmp_path / ".dvkignore").write_bytes(b"x\n" * 10_001)
    with pytest.raises(FormatError, match="10,000"):
        IgnoreRules.load(top)
    (tmp_path / ".dvkignore").write_bytes(bytes(1 << 21))
    with pytest.raises(FormatError, match="larger"):
        IgnoreRules.load(top)
    (tmp_path / ".dvkignore").unlink()
    (tmp_path / ".dvkignore").symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="symbolic link"):
        IgnoreRules.load(top)


# -- .gitattributes ------------------------------------------------------------------------------


def test_the_attributes_line_is_added_once_and_other_lines_stay(repo: Repo) -> None:
    top = os.fsencode(repo.top)
    attributes = repo.top / ".gitattributes"
    for before in (b"", b"* text=auto", b"*.png binary\r\n\n"):
        attributes.write_bytes(before)
        assert ensure_attributes(top)
        text = attributes.read_bytes()
        assert text.startswith(before)
        assert text.endswith(ATTRIBUTES_LINE + b"\n")
        assert not ensure_attributes(top)
        assert attributes.read_bytes() == text
    told = repo.git("check-attr", "text", "merge", "--", "a/x.dvk")
    assert told == "a/x.dvk: text: unset\na/x.dvk: merge: dvk\n"


def test_with_the_attributes_line_no_setting_changes_a_pointers_line_ends(repo: Repo) -> None:
    ensure_attributes(os.fsencode(repo.top))
    repo.git("config", "core.autocrlf", "true")
    repo.commit({"x.dvk": pointer(1)})
    (repo.top / "x.dvk").unlink()
    repo.git("checkout", "--", "x.dvk")
    assert (repo.top / "x.dvk").read_bytes() == pointer(1)


def test_pattern_text_is_stable() -> None:
    assert exclude_pattern(b"a b/c*") == b"/a b/c\\*"
    assert exclude_pattern(b"x ") == b"/x\\ "
