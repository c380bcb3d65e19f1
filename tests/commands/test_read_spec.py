"""`[REV:]PATH` means what it means to Git."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from projects import Project

from dvk.commands.spec import find_target, parse_spec
from dvk.errors import DvkError, FormatError, NotFound, UsageError


@pytest.mark.parametrize(
    ("text", "rev", "path"),
    [
        ("a/b", None, b"a/b"),
        ("HEAD:a/b", "HEAD", b"a/b"),
        ("HEAD:", "HEAD", b""),
        (":a", "", b"a"),
        ("v1:a:b", "v1", b"a:b"),
        ("./a:b", None, b"./a:b"),
        ("../a:b", None, b"../a:b"),
        ("/x/a:b", None, b"/x/a:b"),
        ("HEAD@{12:30}:a", "HEAD@{12:30}", b"a"),
        ("origin/main:a", "origin/main", b"a"),
        (b"caf\xe9", None, b"caf\xe9"),
    ],
)
def test_the_first_colon_outside_of_braces_ends_the_revision(text: str | bytes, rev: str | None, path: bytes) -> None:
    found = parse_spec(text)
    assert (found.rev, found.path) == (rev, path)


@given(st.binary(min_size=1).filter(lambda b: b"\0" not in b and not b.startswith(b":/")))
def test_nothing_of_what_was_written_is_lost(text: bytes) -> None:
    found = parse_spec(text)
    rev = b"" if found.rev is None else found.rev.encode("utf-8", "surrogateescape") + b":"
    assert rev + found.path == text


@pytest.mark.parametrize("text", ["", ":/fix typo", "a\0b"])
def test_what_names_no_path_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_spec(text)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    base = tmp_path_factory.mktemp("spec")
    made = Project(base / "p", base / "home")
    made.version({"data/a.csv": b"1\n", "im/x/1": b"1", "im/x/2": b"2", "code.py": b""}, "data/a.csv", "im")
    made.git("tag", "v1")
    made.version({"data/a.csv": b"2\n", "data/odd:name": b"3"}, "data/a.csv", "data/odd:name")
    return made


@pytest.mark.parametrize(
    ("folder", "text", "path", "inner"),
    [
        ("", "data/a.csv", b"data/a.csv", b""),
        ("", "data/a.csv.dvk", b"data/a.csv", b""),
        ("data", "a.csv", b"data/a.csv", b""),
        ("data", "../im/", b"im", b""),
        ("data", "HEAD:./a.csv", b"data/a.csv", b""),
        ("data", "HEAD:data/a.csv", b"data/a.csv", b""),
        ("data", "v1:../im/x", b"im", b"x"),
        ("", "v1:im/x/1", b"im", b"x/1"),
        ("", "im/x/1", b"im", b"x/1"),
        ("", ":data/a.csv", b"data/a.csv", b""),
        ("", ":im/x", b"im", b"x"),
        ("", "v1:data//../data/a.csv", None, None),
        ("", "./data/odd:name", b"data/odd:name", b""),
        ("", "HEAD:data/odd:name", b"data/odd:name", b""),
    ],
)
def test_a_path_is_found_from_the_top_or_from_here(
    project: Project, folder: str, text: str, path: bytes | None, inner: bytes | None
) -> None:
    with project.repo(folder) as repo:
        if path is None:
            with pytest.raises(DvkError):
                find_target(repo, parse_spec(text))
            return
        found = find_target(repo, parse_spec(text))
    assert (found.path, found.inner) == (path, inner)


def test_each_version_has_its_own_pointer(project: Project) -> None:
    with project.repo() as repo:
        ids = {
            t: find_target(repo, parse_spec(t)).pointer.id for t in ("v1:data/a.csv", "HEAD:data/a.csv", "data/a.csv")
        }
    assert ids["v1:data/a.csv"] != ids["HEAD:data/a.csv"] == ids["data/a.csv"]


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("nope", NotFound, "dvk does not track it"),
        ("v1:data/odd:name", NotFound, "at v1"),
        ("HEAD:code.py", NotFound, "at HEAD"),
        ("code.py", NotFound, "does not track"),
        ("data", UsageError, "a folder with tracked paths"),
        ("HEAD:", UsageError, "the whole work tree"),
        (".", UsageError, "the whole work tree"),
        ("../x", UsageError, "outside"),
        ("HEAD:../x", UsageError, "from the top"),
        ("HEAD:/etc/passwd", UsageError, "from the top"),
        ("HEAD:.git/config", UsageError, ".git"),
        ("no-such-rev:data/a.csv", NotFound, "no such revision"),
        ("--all:data/a.csv", UsageError, "not a revision"),
        ("data/a.csv/x", NotFound, "nothing lies in it"),
    ],
)
def test_what_is_not_tracked_is_said_so(project: Project, text: str, kind: type[DvkError], words: str) -> None:
    with project.repo() as repo, pytest.raises(kind, match=words):
        find_target(repo, parse_spec(text))


def test_who_forgot_the_dot_before_a_path_with_a_colon_is_told(project: Project) -> None:
    with project.repo() as repo, pytest.raises(NotFound) as caught:
        find_target(repo, parse_spec("data/odd:name"))
    assert "./data/odd:name" in caught.value.hint


def test_a_pointer_that_cannot_be_read_is_named(project: Project, tmp_path: Path) -> None:
    other = Project(tmp_path / "p", tmp_path / "home")
    other.git_repo.commit({"x.dvk": b"<<<<<<< HEAD\n"})
    with other.repo() as repo:
        for text in ("x", "HEAD:x", ":x"):
            with pytest.raises(FormatError) as caught:
                find_target(repo, parse_spec(text))
            assert caught.value.subject == "x.dvk"
