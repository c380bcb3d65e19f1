"""Settings: the right value with its origin, and nothing dangerous out of a file that strangers wrote."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvk.backend.settings import RemoteSettings
from dvk.errors import DvkError, FormatError, NewerFormat, NotFound, Refused, UsageError
from dvk.workspace.config import (
    Config,
    ConfigFiles,
    Layer,
    Origin,
    Value,
    user_cache_dir,
    user_config_dir,
)
from dvk.workspace.config_edit import remove_remote, rename_remote, set_value, unset
from dvk.workspace.keys import KEYS, Key, check_url, find_key

DOCS = Path(__file__).parents[2] / "docs/format/dvk-toml.md"


@pytest.fixture
def files(tmp_path: Path) -> ConfigFiles:
    (tmp_path / "top").mkdir()
    environ = {"HOME": str(tmp_path / "home"), "DVK_CONFIG_HOME": str(tmp_path / "user")}
    return ConfigFiles.of(os.fsencode(tmp_path / "top"), os.fsencode(tmp_path / "git/dvk"), environ)


def write(path: bytes, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def read(path: bytes) -> str:
    with open(path, encoding="utf-8") as f:
        return f.read()


def repo_file(text: str) -> Layer:
    return Layer.parse(b"format = 1\n" + text.encode(), "repo", place="dvk.toml")


# -- reading -------------------------------------------------------------------------------------


def test_the_example_of_the_format_page_is_read(files: ConfigFiles) -> None:
    example = re.search(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert example
    write(files.repo, example[1])
    config = Config.load(files, {})
    assert config.default_remote() == "origin"
    [remote] = config.remotes().values()
    assert (remote.name, remote.url, remote.origin) == (
        "origin",
        "s3://acme/churn",
        Origin("repo", "dvk.toml"),
    )
    assert remote.settings == RemoteSettings()
    assert config.profile_for(b"models/a/b.safetensors") == "cdc-64k"
    assert config.table_key(b"data/x.csv") == ("customer_id", "month")
    assert config.table_key(b"data/deep/x.csv") is None


def test_without_any_file_there_are_the_defaults(files: ConfigFiles) -> None:
    config = Config.load(files, {})
    assert dict(config.items()) == {
        key.name: Value(key.default, Origin("default", "built in")) for key in KEYS if key.default is not None
    }
    assert config.remotes() == {}
    assert config.default_remote() is None
    assert config.get("core.remote") is None
    assert config.size("hooks.push_limit") == 1_000_000_000


def test_stronger_scopes_win_and_each_value_knows_where_it_is_from(files: ConfigFiles) -> None:
    write(files.repo, 'format = 1\n[core]\nremote = "a"\n[remote.a]\nurl = "s3://x/1"\n')
    assert Config.load(files, {}).get("core.remote") == Value("a", Origin("repo", "dvk.toml"))
    write(files.user, '[core]\nremote = "b"\n[store]\nmax_size = "2 GiB"\n')
    write(files.local, '[core]\nremote = "c"\n[remote.a]\nregion = "eu-west-1"\nanon = true\n')
    config = Config.load(files, {})
    assert config.get("core.remote") == Value("c", Origin("local", os.fsdecode(files.local)))
    assert config.size("store.max_size") == 2 << 30
    assert config.remotes()["a"].settings == RemoteSettings(region="eu-west-1", anon=True)
    config = Config.load(files, {"DVK_REMOTE": "d", "DVK_STORE": "/data/store", "DVK_STORE_MAX_SIZE": "5 MB"})
    assert config.get("core.remote") == Value("d", Origin("env", "DVK_REMOTE"))
    assert config.text("store.path") == "/data/store"
    assert config.size("store.max_size") == 5_000_000


def test_the_only_remote_or_the_one_called_origin_is_the_default(files: ConfigFiles) -> None:
    write(files.repo, 'format = 1\n[remote.my.team]\nurl = "s3://x/1"\n'.replace("my.team", '"my.team"'))
    assert Config.load(files, {}).default_remote() == "my.team"
    write(files.user, '[remote.b]\nurl = "/mnt/b"\n[remote.settings-only]\nregion = "r"\n')
    assert Config.load(files, {}).default_remote() is None
    write(files.local, '[remote.origin]\nurl = "/mnt/o"\n')
    config = Config.load(files, {})
    assert config.default_remote() == "origin"
    assert list(config.remotes()) == ["b", "my.team", "origin"]
    assert config.get("remote.my.team.url") == Value("s3://x/1", Origin("repo", "dvk.toml"))


def test_the_first_rule_that_matches_decides() -> None:
    layer = repo_file(
        '[[profile.path]]\npattern = "/m/*.bin"\nuse = "one"\n[[profile.path]]\npattern = "m/"\nuse = "two"\n'
        '[[table]]\npath = "*.csv"\nkey = ["a"]\n[[table]]\npath = "x.csv"\nkey = ["b"]\n'
    )
    config = Config(ConfigFiles(b"", b"", b""), {"profile.default": Value("base", Origin("default", ""))})
    config = Config(config.files, config.values, layer.profile_rules, layer.table_rules)
    assert [config.profile_for(p) for p in (b"m/a.bin", b"m/d/a.bin", b"a.bin", b"\xff")] == [
        "one",
        "two",
        "base",
        "base",
    ]
    assert config.table_key(b"d/x.csv") == ("a",)
    assert config.table_key(b"d/x.tsv") is None


BAD = {
    "x = 1": "no such setting",
    '[core]\nremotes = "a"': "no such setting",
    "[core]\nremote = 1": "printable",
    '[core]\nremote = "-x"': "not the name of a remote",
    '[core]\nremote = "a/b"': "not the name of a remote",
    '[core]\nremote = ""': "printable",
    'core = "x"': "no such setting",
    "[core.remote]\nx = 1": "printable",
    'remote = "x"': "no such setting",
    '[remote]\nx = "y"': "should be a section",
    '[remote."a b"]\nurl = "s3://b"': "not the name of a remote",
    '[remote."../x"]\nurl = "s3://b"': "not the name of a remote",
    '[remote.o]\nurl = ["s3://b"]': "printable",
    '[remote.o]\nurl = "s3://key:secret@b/p"': "user name or password",
    '[remote.o]\nurl = "https://me@host/p"': "user name or password",
    '[remote.o]\nurl = "s3://b/p?X-Amz-Signature=abc"': "query or fragment",
    '[remote.o]\nurl = "s3://b/p#frag"': "query or fragment",
    '[remote.o]\nurl = "--upload-pack=x"': "starts with a dash",
    '[remote.o]\nurl = "filecache::s3://b"': "chains",
    '[remote.o]\nurl = "simplecache::s3://b/x"': "chains",
    '[remote.o]\nurl = "s3://b/\\u001b[31m"': "printable",
    '[remote.o]\nendpoint_url = "http://evil"': "belongs in your own configuration",
    '[remote.o]\nregion = "r"': "belongs in your own configuration",
    '[remote.o]\nprofile = "admin"': "belongs in your own configuration",
    "[remote.o]\nanon = true": "belongs in your own configuration",
    '[remote.o]\nsse = "AES256"': "belongs in your own configuration",
    "[remote.o]\nverify = false": "no such setting",
    '[remote.o]\nsecret_key = "s3cr3t"': "no such setting",
    '[remote.o]\ncommand = "rm -rf /"': "no such setting",
    '[store]\npath = "/etc"': "belongs in your own configuration",
    '[store]\nmax_size = "1 GB"': "belongs in your own configuration",
    "[hooks]\npush_limit = 0": "belongs in your own configuration",
    '[hooks]\npre_push = "sh"': "no such setting",
    '[filter]\nclean = "x"': "no such setting",
    '[profile]\ndefault = "../x"': "name of a profile",
    '[profile]\npath = "x"': "at most 1,000 sections",
    '[[profile.path]]\npattern = "a"': "exactly",
    '[[profile.path]]\npattern = "!a"\nuse = "x"': "without `!`",
    '[[profile.path]]\npattern = "["\nuse = "x"': "without `!`",
    '[[profile.path]]\npattern = "a"\nuse = "X Y"': "name of a profile",
    '[table]\npath = "a"\nkey = ["x"]': "at most 1,000 sections",
    '[[table]]\npath = "a"\nkey = []': "names of columns",
    '[[table]]\npath = "a"\nkey = "x"': "names of columns",
    '[[table]]\npath = "a"\nkey = ["x", "x"]': "names of columns",
    '[[table]]\npath = "a"\nkey = ["x"]\nquery = "DROP"': "exactly",
    "a = {": "no valid TOML",
    "a = 1\na = 2": "no valid TOML",
    '[core]\nremote = "a"\n<<<<<<< HEAD\n': "conflict markers",
    "x = " + "[" * 2000: "no valid TOML",
}


@pytest.mark.parametrize("text", BAD, ids=lambda t: t[:40])
def test_what_a_tracked_file_may_not_say_is_refused_by_name(text: str) -> None:
    with pytest.raises(FormatError) as caught:
        repo_file(text)
    assert BAD[text] in caught.value.message
    assert caught.value.subject.startswith("dvk.toml")
    assert "s3cr3t" not in str(caught.value)
    assert "secret@" not in str(caught.value)
    assert "=abc" not in str(caught.value)


LONG_KEYS = ["a" + ".a" * 5_000 + " = 1", "[x" + ' . "a"' * 150_000 + "]", "x = {" + "a.'b'." * 99 + "a=1}"]


@pytest.mark.parametrize("text", LONG_KEYS, ids=["bare", "quoted", "inline"])
def test_a_key_of_thousands_of_parts_is_refused_at_once(text: str) -> None:
    """The parser of TOML takes the square of their number: 10 KB in a cloned repository would hold up every verb."""
    began = time.process_time()
    with pytest.raises(FormatError, match="more than 32 parts"):
        Layer.parse(text.encode(), "repo", place="dvk.toml")
    assert time.process_time() - began < 1


def test_a_similar_key_or_the_place_for_secrets_is_suggested() -> None:
    for text, hint in {
        '[core]\nremot = "a"': "core.remote",
        '[remote.o]\nsecret_key = "a"': "aws configure",
    }.items():
        with pytest.raises(FormatError) as caught:
            repo_file(text)
        assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (b"", FormatError, "format = 1"),
        (b"[core]\n", FormatError, "format = 1"),
        (b"format = 2\nunknown = 1\n", NewerFormat, "newer dvk"),
        (b"format = '1'\n", FormatError, "should be 1"),
        (b"format = true\n", FormatError, "should be 1"),
        (b"format = 0\n", FormatError, "should be 1"),
        (b"\xff", FormatError, "UTF-8"),
    ],
)
def test_the_format_number_decides_who_may_read(text: bytes, error: type[DvkError], says: str) -> None:
    with pytest.raises(error, match=says):
        Layer.parse(text, "repo", place="dvk.toml")


def test_lists_and_profiles_belong_to_the_repository(files: ConfigFiles) -> None:
    for text in ('[[table]]\npath = "a"\nkey = ["x"]\n', '[profile]\ndefault = "cdc-64k"\n'):
        write(files.local, text)
        with pytest.raises(FormatError, match=r"belongs in dvk\.toml"):
            Config.load(files, {})


def test_a_tracked_file_that_is_a_link_is_not_followed_and_the_users_own_is(files: ConfigFiles) -> None:
    os.symlink("/etc/passwd", files.repo)
    with pytest.raises(Refused, match="symbolic link"):
        Config.load(files, {})
    os.unlink(files.repo)
    write(files.user + b".real", '[core]\nremote = "b"\n')
    os.symlink(files.user + b".real", files.user)
    assert Config.load(files, {}).text("core.remote") == "b"
    set_value(files, "user", "core.remote", "c")
    assert os.path.islink(files.user)
    assert Config.load(files, {}).text("core.remote") == "c"


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        Config.load(ConfigFiles(b"/nowhere/a", b"/nowhere/b", b"/nowhere/c"), {"DVK_STORE": "relative"})
    assert caught.value.subject == "DVK_STORE"


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_only_our_errors_escape_from_any_bytes(data: bytes) -> None:
    for text in (data, b"format = 1\n" + data, b"format = 1\n[remote.o]\nurl = " + data):
        try:
            Layer.parse(text, "repo", place="dvk.toml")
        except FormatError as e:
            assert e.message


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1500", 1500), ("1.5 kB", 1500), ("2GiB", 2 << 30), ("1 TB", 10**12), ("0.1 MB", 100_000)],
)
def test_sizes(text: str, size: int) -> None:
    assert find_key("store.max_size").parse(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1 gb", "GB", "1e9", "99999999 TB", "1_000", "٣", "0x10", str(2**63)])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError):
        find_key("store.max_size").parse(text)


@pytest.mark.parametrize("url", ["s3://b", "s3://b/p@x/y", "/mnt/a b", "file:///x", "gs://b/p", "/odd::name", "C:\\x"])
def test_urls_that_can_be_stored(url: str) -> None:
    assert check_url(url, subject="u") == url


def test_folders_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert user_config_dir({"HOME": "/h"}) == b"/h/.config/dvk"
    assert user_config_dir({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}) == b"/x/dvk"
    assert user_config_dir({"HOME": "/h", "XDG_CONFIG_HOME": "relative"}) == b"/h/.config/dvk"
    assert user_config_dir({"HOME": "/h", "DVK_CONFIG_HOME": "/mine"}) == b"/mine"
    assert user_cache_dir({"HOME": "/h"}) == b"/h/.cache/dvk"
    monkeypatch.setattr("sys.platform", "darwin")
    assert user_config_dir({"HOME": "/h"}) == b"/h/Library/Application Support/dvk"
    assert user_cache_dir({"HOME": "/h"}) == b"/h/Library/Caches/dvk"


# -- changing ------------------------------------------------------------------------------------


def test_a_change_keeps_comments_order_and_everything_else(files: ConfigFiles) -> None:
    write(
        files.repo,
        "# ours\nformat = 1  # do not touch\n\n[remote.origin] # team\nurl = 's3://a/b'\n\n[core]\nremote = 'origin'\n",
    )
    set_value(files, "repo", "core.remote", "other")
    set_value(files, "repo", "remote.other.url", "/mnt/team")
    text = read(files.repo)
    assert text.startswith("# ours\nformat = 1  # do not touch\n\n[remote.origin] # team\nurl = 's3://a/b'\n")
    config = Config.load(files, {})
    assert config.default_remote() == "other"
    assert config.remotes()["other"].url == "/mnt/team"
    unset(files, "repo", "remote.other.url")
    with pytest.raises(NotFound):
        unset(files, "repo", "remote.other.url")
    assert list(Config.load(files, {}).remotes()) == ["origin"]


def test_a_missing_file_is_made_with_its_folders(files: ConfigFiles) -> None:
    set_value(files, "repo", "remote.origin.url", "s3://a/b")
    assert read(files.repo) == 'format = 1\n\n[remote.origin]\nurl = "s3://a/b"\n'
    set_value(files, "local", "remote.origin.region", "eu-west-1")
    set_value(files, "user", "store.max_size", "2 GiB")
    set_value(files, "user", "remote.dotted.name.anon", "yes")
    assert '"2 GiB"' in read(files.user)
    assert os.stat(files.local).st_mode & 0o077 == 0
    config = Config.load(files, {})
    assert config.remotes()["origin"].settings.region == "eu-west-1"
    assert config.get("remote.dotted.name.anon") == Value(True, Origin("user", os.fsdecode(files.user)))


@pytest.mark.parametrize(
    "start", ["", "core.remote = 'x'\n", "[core]\n", "core = {remote = 'x'}\n", "remote.o.url='s3://b'\n"]
)
@pytest.mark.parametrize("key", [("core.remote", "a"), ("remote.o.url", "s3://a/b"), ("remote.p.url", "/mnt")])
def test_every_way_to_write_toml_can_be_changed_and_undone(
    files: ConfigFiles, start: str, key: tuple[str, str]
) -> None:
    write(files.repo, "format = 1\n" + start)
    set_value(files, "repo", *key)
    assert Config.load(files, {}).text(key[0]) == key[1]
    unset(files, "repo", key[0])
    assert Config.load(files, {}).get(key[0]) is None


@pytest.mark.parametrize(
    ("scope", "name", "text", "error"),
    [
        ("repo", "store.path", "/x", Refused),
        ("repo", "remote.o.endpoint_url", "http://x", Refused),
        ("local", "profile.default", "x", Refused),
        ("repo", "core.remot", "x", UsageError),
        ("repo", "table", "x", UsageError),
        ("repo", "remote.o.url", "https://u:p@h/x", UsageError),
        ("local", "remote.o.addressing", "sideways", UsageError),
        ("local", "remote.o.anon", "maybe", UsageError),
        ("local", "remote.-o.anon", "true", UsageError),
        ("local", "store.path", "relative", UsageError),
        ("local", "remote.o.endpoint_url", "ftp://x", UsageError),
    ],
)
def test_a_value_that_may_not_be_there_is_not_written(
    files: ConfigFiles, scope: str, name: str, text: str, error: type[DvkError]
) -> None:
    with pytest.raises(error):
        set_value(files, scope, name, text)  # type: ignore[arg-type]
    assert not any(os.path.exists(p) for p in (files.repo, files.user, files.local))


def test_a_file_that_cannot_be_read_is_left_alone(files: ConfigFiles) -> None:
    write(files.repo, "format = 1\nbroken = \n")
    with pytest.raises(FormatError):
        set_value(files, "repo", "core.remote", "x")
    assert read(files.repo) == "format = 1\nbroken = \n"


def test_remotes_are_renamed_and_removed_whole(files: ConfigFiles) -> None:
    set_value(files, "repo", "remote.origin.url", "s3://a/b")
    set_value(files, "repo", "core.remote", "origin")
    set_value(files, "local", "remote.origin.region", "r")
    for scope in ("repo", "local"):
        assert rename_remote(files, scope, "origin", "team")  # type: ignore[arg-type]
    config = Config.load(files, {})
    assert config.default_remote() == "team"
    assert config.remotes()["team"].settings.region == "r"
    set_value(files, "repo", "remote.second.url", "/x")
    with pytest.raises(Refused, match="exists"):
        rename_remote(files, "repo", "second", "team")
    with pytest.raises(UsageError):
        rename_remote(files, "repo", "second", "a b")
    assert not rename_remote(files, "repo", "nobody", "x")
    assert remove_remote(files, "repo", "team")
    assert not remove_remote(files, "repo", "team")
    assert remove_remote(files, "local", "team")
    config = Config.load(files, {})
    assert list(config.remotes()) == ["second"]
    assert config.get("core.remote") is None


# -- documentation -------------------------------------------------------------------------------


def doc_rows() -> str:
    def row(key: Key) -> str:
        name = key.name.replace("<name>", "NAME")
        kind = ", ".join(f"`{c}`" for c in key.choices) if key.choices else key.type
        default = f" (default `{key.default}`)" if key.default is not None else ""
        env = f"`{key.env}`" if key.env else ""
        return f"| `{name}` | {kind} | {', '.join(key.scopes)} | {env} | {key.doc}{default} |\n"

    return "".join(row(key) for key in KEYS)


def test_the_table_of_the_format_page_is_that_of_the_code() -> None:
    text = DOCS.read_text()
    if os.environ.get("DVK_TEST_WRITE_DOCS"):
        text = re.sub(
            r"(\|---\|---\|---\|---\|---\|\n).*?(\n`NAME` of a remote)",
            lambda m: m[1] + doc_rows() + m[2],
            text,
            flags=re.DOTALL,
        )
        DOCS.write_text(text)
    assert doc_rows() in text
