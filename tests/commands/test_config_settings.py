"""`config` writes each setting where it belongs and says which place wins."""

from __future__ import annotations

from pathlib import Path

import pytest
from projects import Project

from dvk.commands.settings import Settings
from dvk.errors import NotARepository, NotFound, Refused, UsageError


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "p", tmp_path / "home")


def test_a_value_goes_where_its_key_belongs(project: Project) -> None:
    with project.repo() as repo:
        settings = Settings(repo, project.environ)
        assert (settings.set("core.remote", "o").scope, settings.set("store.max_size", "2 GiB").scope) == (
            "repo",
            "local",
        )
        assert settings.get("store.max_size").value == 2 << 30
        assert settings.get("core.remote").place == "dvk.toml"
    assert project.git("status", "--porcelain") == "A  dvk.toml\n"


def test_where_it_is_set_it_is_changed(project: Project) -> None:
    with project.repo() as repo:
        settings = Settings(repo, project.environ)
        settings.set("core.remote", "a", scope="local")
        assert settings.set("core.remote", "b").scope == "local"
        assert settings.unset("core.remote").scope == "local"
        assert settings.set("core.remote", "c").scope == "repo"


def test_a_stronger_place_is_told(project: Project) -> None:
    with project.repo() as repo:
        settings = Settings(repo, {**project.environ, "DVK_REMOTE": "strong"})
        now = settings.set("core.remote", "weak").now
    assert now is not None and (now.value, now.scope, now.place) == ("strong", "env", "DVK_REMOTE")


def test_one_file_can_be_asked(project: Project) -> None:
    with project.repo() as repo:
        settings = Settings(repo, project.environ)
        settings.set("core.remote", "a", scope="user")
        settings.set("core.remote", "b", scope="local")
        assert [(s.key, s.value) for s in settings.all("user")] == [("core.remote", "a")]
        assert settings.get("core.remote", scope="user").value == "a"
        with pytest.raises(NotFound, match=r"not set in dvk\.toml"):
            settings.get("core.remote", scope="repo")
        found = {s.key: (s.value, s.scope) for s in settings.all()}
    assert found["core.remote"] == ("b", "local") and found["profile.default"] == ("auto-64k", "default")


def test_what_cannot_be_is_refused(project: Project) -> None:
    with project.repo() as repo:
        settings = Settings(repo, project.environ)
        with pytest.raises(UsageError, match="no such setting"):
            settings.get("core.remotes")
        with pytest.raises(UsageError, match="should be a size"):
            settings.set("store.max_size", "much")
        with pytest.raises(Refused, match="your own configuration"):
            settings.set("store.path", "/x", scope="repo")
        with pytest.raises(Refused, match=r"belongs in dvk\.toml"):
            settings.set("profile.default", "cdc-64k", scope="local")
        with pytest.raises(NotFound, match="is not set"):
            settings.unset("core.remote")
        with pytest.raises(UsageError) as caught:
            settings.set("remote.o.secret_key", "AKIAXXXX")
        assert "AKIAXXXX" not in str(caught.value) and "no secrets" in caught.value.hint
    assert not (project.top / "dvk.toml").exists()


def test_outside_of_a_repository_the_users_own_settings_work(project: Project) -> None:
    settings = Settings(None, project.environ)
    assert settings.set("core.remote", "o").scope == "user"
    assert settings.get("core.remote").value == "o"
    for scope in ("local", "repo"):
        with pytest.raises(NotARepository) as caught:
            settings.set("core.remote", "x", scope=scope)  # type: ignore[arg-type]
        assert "--global" in caught.value.hint
    assert settings.unset("core.remote").now is None
