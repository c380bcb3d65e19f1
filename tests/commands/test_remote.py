"""Remotes are configured without being contacted; settings of this machine never reach a tracked file."""

from __future__ import annotations

from pathlib import Path

import pytest
from projects import Project

from dvk.commands.remotes import absolute_url, remote_add, remote_list, remote_remove, remote_rename
from dvk.errors import DvkError, NotFound, Refused, UsageError


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "p", tmp_path / "home")


def names(project: Project) -> dict[str, tuple[str, bool]]:
    with project.repo() as repo:
        return {r.name: (r.url, r.default) for r in remote_list(repo)}


def test_the_first_remote_becomes_the_default_and_stays_it(project: Project) -> None:
    with project.repo() as repo:
        done = remote_add(repo, "lab", "s3://acme/churn/")
    assert (done.url, done.default, done.places, done.staged) == ("s3://acme/churn", True, ("dvk.toml",), True)
    with project.repo() as repo:
        assert not remote_add(repo, "origin", "s3://acme/two").default
    assert names(project) == {"lab": ("s3://acme/churn", True), "origin": ("s3://acme/two", False)}
    with project.repo() as repo:
        assert remote_add(repo, "third", "s3://acme/three", default=True).default
    assert names(project)["third"][1] and not names(project)["lab"][1]


def test_paths_become_absolute_from_the_working_folder(project: Project, tmp_path: Path) -> None:
    (project.top / "sub").mkdir()
    with project.repo("sub") as repo:
        assert remote_add(repo, "a", "../../store").url == str(tmp_path / "store")
        assert absolute_url("file:///mnt/x", cwd=b"/") == "/mnt/x"
        assert absolute_url("x", cwd=b"/a/b") == "/a/b/x"
        assert absolute_url("S3://Bucket/p", cwd=b"/") == "s3://Bucket/p"


def test_settings_of_this_machine_stay_out_of_dvk_toml(project: Project) -> None:
    with project.repo() as repo:
        done = remote_add(
            repo, "o", "s3://bucket/p", settings={"endpoint_url": "http://localhost:9000", "anon": "true"}
        )
    assert len(done.places) == 2
    assert b"endpoint" not in project.read("dvk.toml")
    assert b'endpoint_url = "http://localhost:9000"' in project.read(".git/dvk/config.toml")
    with project.repo() as repo:
        config = repo.remote_config("o")
        assert (config.settings.endpoint_url, config.settings.anon) == ("http://localhost:9000", True)
        assert remote_list(repo)[0].settings == {"anon": True, "endpoint_url": "http://localhost:9000"}


def test_a_local_remote_is_in_no_tracked_file(project: Project) -> None:
    with project.repo() as repo:
        done = remote_add(repo, "o", "/mnt/x", scope="local")
    assert not (project.top / "dvk.toml").exists() and not done.staged
    assert names(project) == {"o": ("/mnt/x", True)}


@pytest.mark.parametrize(
    ("name", "url", "settings", "words"),
    [
        ("-x", "s3://bucket/p", {}, "not the name of a remote"),
        ("a/b", "s3://bucket/p", {}, "not the name of a remote"),
        ("o", "s3:b", {}, "two slashes"),
        ("o", "s3//bucket/p", {}, "without its colon"),
        ("o", "ftp://b/p", {}, "unknown scheme"),
        ("o", "s3://key:secret@bucket/p", {}, "password"),
        ("o", "", {}, "empty URL"),
        ("o", "s3://bucket/p", {"addressing": "odd"}, "one of auto, path, virtual"),
        ("o", "s3://bucket/p", {"endpoint_url": "localhost"}, "http://HOST"),
        ("o", "/mnt/x", {"region": "eu"}, "--region is for"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_written(
    project: Project, name: str, url: str, settings: dict[str, str], words: str
) -> None:
    with project.repo() as repo, pytest.raises(UsageError) as caught:
        remote_add(repo, name, url, settings=settings)
    assert words in str(caught.value) and "secret" not in str(caught.value) + caught.value.hint
    assert not (project.top / "dvk.toml").exists() and not (project.top / ".git/dvk/config.toml").exists()


def test_a_name_is_taken_once(project: Project) -> None:
    with project.repo() as repo:
        remote_add(repo, "o", "/mnt/x")
    with project.repo() as repo, pytest.raises(Refused, match="exists: /mnt/x"):
        remote_add(repo, "o", "/mnt/y")


def test_removing_forgets_all_of_it_and_the_default(project: Project) -> None:
    with project.repo() as repo:
        remote_add(repo, "o", "s3://bucket/p", settings={"region": "eu"})
    with project.repo() as repo:
        done = remote_remove(repo, "o")
    assert (done.default, done.default_now, len(done.places)) == (True, "", 2)
    assert names(project) == {}
    for name in ("dvk.toml", ".git/dvk/config.toml"):
        assert b"remote" not in project.read(name).replace(b"# Where", b"")
    with project.repo() as repo, pytest.raises(NotFound, match="no remote has this name"):
        remote_remove(repo, "o")


def test_renaming_keeps_settings_and_default(project: Project) -> None:
    with project.repo() as repo:
        remote_add(repo, "o", "s3://bucket/p", settings={"region": "eu"})
        remote_add(repo, "q", "/mnt/q", scope="local")
    with project.repo() as repo:
        remote_rename(repo, "o", "origin")
    with project.repo() as repo:
        assert repo.remote_config("origin").settings.region == "eu"
    assert names(project) == {"origin": ("s3://bucket/p", True), "q": ("/mnt/q", False)}
    with project.repo() as repo:
        for old, new in (("zz", "x"), ("q", "origin"), ("q", "-bad")):
            with pytest.raises(DvkError):
                remote_rename(repo, old, new)


def test_a_remote_of_all_repositories_is_not_removed_by_one(project: Project) -> None:
    with project.repo() as repo:
        remote_add(repo, "o", "/mnt/x", scope="user")
    with project.repo() as repo, pytest.raises(Refused, match="all your repositories"):
        remote_remove(repo, "o")
    assert names(project) == {"o": ("/mnt/x", True)}
