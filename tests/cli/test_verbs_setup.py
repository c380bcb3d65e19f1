"""`init`, `remote` and `config` as a person types them."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from projects import Project

from dvk.workspace.keys import KEYS


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "p", tmp_path / "home")


def test_init_says_what_it_did_and_what_comes_next(project: Project) -> None:
    done = project.dvk("init")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "wrote dvk.toml, .gitattributes; staged\n"
        "hooks: pre-commit, pre-push, post-checkout, post-merge, post-rewrite, post-index-change\n"
        "next: dvk remote add origin s3://BUCKET/PREFIX (or a path), dvk add PATH\n"
    )
    assert project.dvk("init").out == "nothing to do: dvk.toml and .gitattributes are there\n"
    assert project.dvk("-q", "init").out == ""
    found = project.dvk("init", "--no-hooks", "--json").document["result"]
    assert found == {
        "top": str(project.top),
        "wrote": [],
        "staged": [],
        "not_staged": "",
        "hooks": None,
        "no_hooks": "",
    }


def test_where_there_is_no_repository(tmp_path: Path, project: Project) -> None:
    project.top = tmp_path
    for argv in (["init"], ["status"], ["ls"], ["add", "x"], ["log", "x"], ["remote", "list"]):
        done = project.dvk(*argv)
        assert done.code == 10 and "`git init`" in done.err and done.out == "", argv
    bare = tmp_path / "bare"
    project.top = bare
    bare.mkdir()
    project.git_repo.git("init", "-q", "--bare", str(bare), cwd=tmp_path)
    done = project.dvk("init")
    assert done.code == 10 and "bare" in done.err


def test_remotes(project: Project, tmp_path: Path) -> None:
    assert "dvk remote add origin" in project.dvk("remote", "list").out
    done = project.dvk("remote", "add", "origin", "../store")
    assert done.out == f"origin is {tmp_path}/store; default remote; nothing contacted\nwrote dvk.toml; staged\n"
    assert not (tmp_path / "store").exists()
    done = project.dvk("remote", "add", "b", "s3://bucket/p", "--region", "eu", "--anon")
    assert done.out.startswith("b is s3://bucket/p; the default remote is origin; nothing contacted\n")
    lines = project.dvk("remote", "list").out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["b", "s3://bucket/p", "anon=True,"],
        ["*", "origin", f"{tmp_path}/store"],
    ]
    rows = project.dvk("remote", "list", "--json").document["result"]
    assert [(r["name"], r["url"], r["default"], r["scope"]) for r in rows] == [
        ("b", "s3://bucket/p", False, "repo"),
        ("origin", f"{tmp_path}/store", True, "repo"),
    ]
    assert project.dvk("remote", "rename", "origin", "main").out.startswith("origin is called main now; default remote")
    assert "now it is b" in project.dvk("remote", "remove", "main").out
    done = project.dvk("remote", "remove", "main")
    assert (done.code, done.err) == (6, "error: main: no remote has this name\nhint: known remotes: b\n")
    assert project.dvk("remote", "add", "b", "/x").code == 5
    assert project.dvk("remote", "add", "c", "x://y").code == 2
    assert project.dvk("remote", "add", "c", "/x", "--local", "--global").code == 2


def test_config(project: Project) -> None:
    assert project.dvk("config", "store.max_size").code == 6
    done = project.dvk("config", "store.max_size", "2 GiB")
    assert done.out == f"store.max_size written to {project.top}/.git/dvk/config.toml\n"
    assert project.dvk("config", "store.max_size").out == "2147483648\n"
    assert project.dvk("config", "core.remote", "o").out == "core.remote written to dvk.toml; staged\n"
    done = project.dvk("config", "core.remote", "p", environ={"DVK_REMOTE": "strong"})
    assert "environment DVK_REMOTE is stronger and says strong" in done.out
    done = project.dvk("config", "--list", "--show-origin")
    assert [line.split()[0] for line in done.out.splitlines()] == [
        "cache.max_size",
        "core.remote",
        "hooks.large_file",
        "hooks.push_limit",
        "profile.default",
        "store.max_size",
    ]
    assert "core.remote = p" in done.out and "dvk.toml" in done.out and "built in" in done.out
    assert project.dvk("config", "--list", "--local").out == "store.max_size = 2147483648  (2.15 GB)\n"
    assert project.dvk("config", "core.remote", "--json").document["result"] == {
        "key": "core.remote",
        "value": "p",
        "scope": "repo",
        "place": "dvk.toml",
    }
    assert project.dvk("-q", "config", "core.remote", "q").out == ""
    assert project.dvk("config", "--unset", "core.remote").out.startswith("core.remote removed from dvk.toml; staged")
    for argv in (["x.y"], ["store.max_size", "huge"], ["--unset", "core.remote", "x"], ["--list", "core.remote"]):
        assert project.dvk("config", *argv).code == 2, argv
    assert project.dvk("config", "--tracked", "store.path", "/x").code == 5


def test_config_works_outside_of_repositories(project: Project, tmp_path: Path) -> None:
    project.top = tmp_path
    assert project.dvk("config", "--global", "core.remote", "o").code == 0
    assert project.dvk("config", "core.remote").out == "o\n"
    assert project.dvk("config", "--local", "core.remote", "x").code == 10


def test_the_help_of_config_names_every_setting() -> None:
    from dvk.cli.setup import config

    for key in KEYS:
        assert f"\n{key.name}: {key.doc}\n" in f"{inspect.getdoc(config.function)}\n"
