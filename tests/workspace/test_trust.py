"""Which URLs need the user's trust, and what covers them."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvk.backend.locate import parse_remote_url
from dvk.errors import FormatError, Refused, StorageError, UsageError
from dvk.workspace.config import Origin
from dvk.workspace.trust import add_trust, is_trusted, remove_trust, trust_file, trusted_urls, why_ask

TRACKED = Origin("repo", "dvk.toml")
BUCKETS = ("s3://acme/churn", "gs://acme/churn", "az://acme/churn")
CHOSEN = ("https://acme.org/x", "http://127.0.0.1:8080/x", "http://[::1]/x", "ssh://git.acme.org/x", "/mnt/team")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"DVK_CONFIG_HOME": str(tmp_path / "config")}


def covered(prefixes: str, url: str) -> bool:
    return is_trusted(parse_remote_url(url), {"DVK_CONFIG_HOME": "/nonexistent", "DVK_TRUST_REMOTES": prefixes})


@pytest.mark.parametrize("url", BUCKETS)
def test_reading_a_bucket_needs_no_trust_and_writing_does(url: str) -> None:
    parsed = parse_remote_url(url)
    assert not why_ask(parsed, TRACKED, write=False)
    assert "sent" in why_ask(parsed, TRACKED, write=True)


@pytest.mark.parametrize("url", CHOSEN)
def test_a_server_or_folder_that_the_file_chose_needs_trust_for_reading_too(url: str) -> None:
    parsed = parse_remote_url(url)
    assert why_ask(parsed, TRACKED, write=False)
    assert why_ask(parsed, TRACKED, write=True)


@pytest.mark.parametrize("scope", ["user", "local"])
@pytest.mark.parametrize("url", BUCKETS + CHOSEN)
def test_the_users_own_settings_need_no_trust(url: str, scope: str) -> None:
    for write in (True, False):
        assert not why_ask(parse_remote_url(url), Origin(scope, "mine"), write=write)  # type: ignore[arg-type]


def test_trust_is_remembered_for_exactly_one_url(env: dict[str, str]) -> None:
    url = parse_remote_url("s3://acme/churn")
    assert not is_trusted(url, env)
    assert add_trust(url, env)
    assert not add_trust(url, env)
    assert is_trusted(parse_remote_url("s3://acme/churn/"), env)
    for other in ("s3://acme/churn2", "s3://acme/churn/below", "s3://acme", "s3://acm/e/churn", "gs://acme/churn"):
        assert not is_trusted(parse_remote_url(other), env), other
    assert trusted_urls(env) == ["s3://acme/churn"]
    assert remove_trust(url, env)
    assert not remove_trust(url, env)
    assert not is_trusted(url, env)


def test_aliases_and_spellings_are_one_url(env: dict[str, str]) -> None:
    add_trust(parse_remote_url("gcs://acme/x/"), env)
    add_trust(parse_remote_url("/mnt//team/./x/"), env)
    assert is_trusted(parse_remote_url("gs://acme/x"), env)
    assert is_trusted(parse_remote_url("file:///mnt/team/x"), env)


@pytest.mark.parametrize(
    ("prefixes", "url", "yes"),
    [
        ("s3://acme/churn", "s3://acme/churn", True),
        ("s3://acme/churn/", "s3://acme/churn/v2", True),
        ("s3://acme", "s3://acme/any/thing", True),
        ("s3://other s3://acme", "s3://acme/x", True),
        ("s3://other\n  s3://acme\n", "s3://acme/x", True),
        ("s3://acme/churn", "s3://acme/churn-evil", False),
        ("s3://acme/churn", "s3://acme", False),
        ("s3://acme", "s3://acme-evil/x", False),
        ("s3://acme", "gs://acme/x", False),
        ("s3://acme/churn", "s3://acme/%63hurn", False),
        ("https://acme.org", "https://acme.org.evil.net/x", False),
        ("https://acme.org", "https://acme.org:8443/x", False),
        ("https://acme.org", "http://acme.org/x", False),
        ("/mnt/team", "/mnt/team/x", True),
        ("/mnt/team", "/mnt/teamwork", False),
        ("", "s3://acme", False),
    ],
)
def test_the_variable_covers_whole_components_only(prefixes: str, url: str, yes: bool) -> None:
    assert covered(prefixes, url) is yes


PART = st.text("ab-.%", min_size=1, max_size=3).filter(lambda p: p not in (".", ".."))
PATHS = st.lists(PART, max_size=4).map("/".join)


@given(PATHS, PATHS)
def test_a_prefix_covers_what_has_its_components_first_and_nothing_else(prefix: str, path: str) -> None:
    wanted, found = ([p for p in text.split("/") if p] for text in (prefix, path))
    assert covered(f"s3://acme/{prefix}", f"s3://acme/{path}") is (found[: len(wanted)] == wanted)


@pytest.mark.parametrize("entry", ["s3://", "/", "*", "s3://acme/../x", "ftp://x/y", "s3://u:p@acme", "acme"])
def test_a_variable_that_makes_no_sense_is_an_error_and_covers_nothing(entry: str) -> None:
    with pytest.raises(UsageError) as caught:
        covered(f"s3://acme {entry}", "s3://evil/x")
    assert caught.value.subject == "DVK_TRUST_REMOTES"
    assert "u:p" not in str(caught.value)


def test_writers_at_once_lose_nothing_and_the_file_is_the_users_alone(env: dict[str, str]) -> None:
    urls = [parse_remote_url(f"s3://acme/{i:02}") for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda u: add_trust(u, env), urls)) == [True] * 24
    assert trusted_urls(env) == [str(u) for u in urls]
    path = os.fsdecode(trust_file(env))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.listdir(os.path.dirname(path)) == ["trusted-remotes"]


def test_a_list_that_is_a_link_into_dotfiles_is_changed_where_it_leads(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    (tmp_path / "config").mkdir()
    (tmp_path / "config/trusted-remotes").symlink_to(tmp_path / "dotfiles/trusted")
    add_trust(parse_remote_url("s3://acme"), env)
    assert (tmp_path / "config/trusted-remotes").is_symlink()
    assert trusted_urls(env) == ["s3://acme"]


@pytest.mark.parametrize(
    "data", [b"", b"s3://acme\n", b"dvk trusted remotes 2\ns3://acme\n", b"\xff", b"x" * (2 << 20)]
)
def test_a_damaged_list_trusts_nothing_and_is_never_overwritten(env: dict[str, str], data: bytes) -> None:
    path = Path(os.fsdecode(trust_file(env)))
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(FormatError):
        is_trusted(parse_remote_url("s3://acme"), env)
    with pytest.raises(FormatError):
        add_trust(parse_remote_url("s3://acme"), env)
    assert path.read_bytes() == data


def test_a_cut_list_is_damaged(env: dict[str, str]) -> None:
    add_trust(parse_remote_url("s3://acme/churn"), env)
    path = Path(os.fsdecode(trust_file(env)))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FormatError):
        trusted_urls(env)


def test_a_folder_of_settings_that_cannot_be_made_is_an_error_and_the_variable_still_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    env = {"DVK_CONFIG_HOME": str(tmp_path / "file/config")}
    with pytest.raises((StorageError, Refused)):
        add_trust(parse_remote_url("s3://acme"), env)
    assert is_trusted(parse_remote_url("s3://acme"), env | {"DVK_TRUST_REMOTES": "s3://acme"})
