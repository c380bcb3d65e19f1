"""`dvk://`: the tree of a version as fsspec's users see it, from a clone that holds no data."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import random
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
from flowkit import Flow, csv, noise
from gitdaemon import GitDaemon
from readkit import Counted, reading

from dvk.commands.where import close_all
from dvk.errors import DataMissing, DvkError, NotFound, Refused
from dvk.filesystem import DvkFileSystem, join_url, split_url

T1, T2 = csv(40_000, seed=1), csv(40_000, seed=2)
IMAGES = {f"images/{part}/{i:03}.bin": noise(2000 + i, i) for part in ("train", "val") for i in range(60)}
ODD = {"images/odd/a@2x.png": b"at", "images/odd/b:c.png": b"colon", "images/odd/ü n.png": b"letters"}


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """Two versions on a remote: v1 and main."""
    home = tmp_path_factory.mktemp("versions")
    flow = Flow(home / "repo", home)
    flow.write({"code.py": b"print(1)\n", "docs/readme.md": b"# hello\n"})
    flow.write({f"docs/many/{i}.md": b"# %d" % i for i in range(30)})
    os.symlink("code.py", flow.at("docs/code"))
    os.symlink("../code.py", flow.at("docs/good"))
    os.symlink("../../outside", flow.at("docs/bad"))
    flow.git("add", "code.py", "docs")
    flow.write({**IMAGES, **ODD, "data/t.csv": T1, "data/empty.csv": b""})
    os.makedirs(flow.at("images/nothing"))
    os.symlink("../train/000.bin", flow.at("images/val/link.bin"))
    flow.add("images", "data/t.csv", "data/empty.csv")
    flow.commit("one")
    flow.git("tag", "v1")
    flow.git("tag", "v1.1")
    flow.write({"data/t.csv": T2, "images/train/000.bin": b"changed"})
    flow.add("images", "data/t.csv")
    flow.commit("two")
    flow.git("branch", "feature/x", "v1")
    flow.push()
    return flow


@pytest.fixture(scope="module")
def clone(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return flow.clone(tmp_path_factory.mktemp("clone") / "c")


@pytest.fixture
def counted(clone: Flow) -> Iterator[Counted]:
    with reading(clone.environ) as counted:
        yield counted


@pytest.fixture
def fs(clone: Flow, counted: Counted) -> DvkFileSystem:
    return DvkFileSystem(str(clone.top), "v1")


# ---------------------------------------------------------------- the tree


def test_git_and_tracked_data_are_one_tree(fs: DvkFileSystem) -> None:
    assert fs.ls("", detail=False) == ["code.py", "data", "docs", "dvk.toml", "images"]
    assert fs.ls("data", detail=False) == ["data/empty.csv", "data/t.csv"]
    assert fs.ls("images", detail=False) == ["images/nothing", "images/odd", "images/train", "images/val"]
    assert fs.cat_file("code.py") == b"print(1)\n"
    assert fs.cat_file("data/t.csv") == T1 and fs.cat_file("data/empty.csv") == b""
    assert fs.cat_file("images/train/000.bin") == IMAGES["images/train/000.bin"]
    assert fs.isdir("images/nothing") and fs.isfile("docs/readme.md") and not fs.exists("data/t.csv.dvk")
    assert fs.find("images/nothing") == [] and fs.du("images/odd") == sum(map(len, ODD.values()))


def test_every_file_is_found_with_its_size(fs: DvkFileSystem) -> None:
    found = fs.find("images", detail=True)
    sizes = {name: info["size"] for name, info in found.items() if name != "images/val/link.bin"}
    assert sizes == {name: len(data) for name, data in {**IMAGES, **ODD}.items()}
    assert [name for name in fs.find("") if name.startswith("docs") and "many" not in name] == [
        *("docs/bad", "docs/code", "docs/good", "docs/readme.md")
    ]
    assert fs.find("images", maxdepth=1) == [] and fs.find("data/t.csv") == ["data/t.csv"]
    assert fs.find("images", maxdepth=1, withdirs=True) == [
        *("images", "images/nothing", "images/odd", "images/train", "images/val")
    ]
    walked = {f"{root}/{name}" for root, _, files in fs.walk("images") for name in files}
    assert walked == set(fs.find("images"))


def test_globs(fs: DvkFileSystem) -> None:
    assert fs.glob("images/val/00?.bin") == [f"images/val/{i:03}.bin" for i in range(10)]
    assert fs.glob("*/t.csv") == ["data/t.csv"]
    assert fs.glob("**/*.csv") == ["data/empty.csv", "data/t.csv"]
    assert fs.glob("images/*/") == ["images/nothing", "images/odd", "images/train", "images/val"]


def test_urls_are_answered_by_urls_of_the_same_revision(clone: Flow, counted: Counted) -> None:
    """Whatever puts names together again reads the version that was asked for."""
    repo = str(clone.top)
    fs = DvkFileSystem(repo)  # main
    assert fs.cat_file("data/t.csv") == T2
    for prefix in ("dvk://v1@", f"dvk://{repo}:v1@", "dvk://origin/feature/x@", f"dvk://{repo}:origin/feature/x@"):
        names = fs.glob(f"{prefix}*/*.csv")
        assert names == [f"{prefix}data/empty.csv", f"{prefix}data/t.csv"]
        assert fs.cat_file(names[1]) == T1
        assert [root for root, _, _ in fs.walk(prefix, maxdepth=1)] == [prefix]
        assert fs.ls(prefix, detail=False)[1] == f"{prefix}data"
        assert fs.find(f"{prefix}data") == names
        assert fs._parent(names[1]) == f"{prefix}data" and fs._parent(f"{prefix}data") == prefix
        assert fs.glob(f"{prefix}images/val/0*9.bin", detail=True)[f"{prefix}images/val/009.bin"]["size"] == 2009


def test_odd_names_come_back_as_names_that_lead_there(fs: DvkFileSystem, clone: Flow) -> None:
    for prefix in ("", "dvk://v1@", "dvk://", f"dvk://{clone.top}:", f"dvk://{clone.top}:v1@"):
        names = fs.ls(f"{prefix}images/odd", detail=False)
        assert len(names) == 3
        assert {fs.cat_file(name) for name in names} == set(ODD.values())
        assert all(fs.info(name)["name"] == name for name in names)


@pytest.mark.parametrize(
    "url",
    [
        ("", "", "a/b.csv"),
        ("", "v1", "a/b.csv"),
        ("", "feature/x", "a@b.csv"),
        ("", "HEAD~1^2", "a:b@c.csv"),
        ("", "main@{1 day ago}", "x"),
        ("/mnt/churn", "v1", "a:b"),
        ("../churn", "", "a"),
        ("git@host.org:acme/churn", "v1", "a@b:c"),
        ("ssh://git@host:22/acme/churn.git", "v1", "a"),
        ("https://host:8080/acme/churn.git", "", "a"),
        ("https://host:8080/acme/churn.git", "", "a@2x"),
        ("", "v1", ""),
        ("", "", ""),
    ],
)
def test_a_url_says_what_it_was_made_of(url: tuple[str, str, str]) -> None:
    assert split_url(join_url(*url)) == url


def test_links_lead_to_files_and_never_out_of_the_version(fs: DvkFileSystem) -> None:
    assert fs.cat_file("images/val/link.bin") == IMAGES["images/train/000.bin"]
    assert fs.info("images/val/link.bin")["destination"] == "../train/000.bin"
    assert fs.cat_file("docs/good") == b"print(1)\n"
    for name in ("docs/bad", "docs/code"):  # outside; nothing there
        assert fs.info(name)["type"] == "link"
        with pytest.raises(Refused, match="is a link to"):
            fs.open(name)


def test_what_is_known_of_a_file(fs: DvkFileSystem, clone: Flow) -> None:
    from blake3 import blake3

    info = fs.info("data/t.csv")
    assert info["id"] == info["etag"] == fs.ukey("data/t.csv") == blake3(T1).hexdigest()
    assert info["tracked"] == "dvk" and fs.info("code.py")["tracked"] == "git"
    committed = datetime.fromtimestamp(int(clone.git("show", "-s", "--format=%ct", "v1")), UTC)
    assert fs.modified("data/t.csv") == fs.created("code.py") == committed
    other = DvkFileSystem(str(clone.top))
    assert other.checksum("data/t.csv") != fs.checksum("data/t.csv")
    assert other.checksum("data/empty.csv") == fs.checksum("data/empty.csv")


def test_ranges_and_files_together(fs: DvkFileSystem, tmp_path: Path) -> None:
    size = len(T1)
    starts, ends = [0, 100, -50, 5, size - 1], [10, 300, None, 5, size + 100]
    parts = fs.cat_ranges(["data/t.csv"] * 5, starts, ends)
    assert parts == [T1[a:b] for a, b in zip(starts, ends, strict=True)]
    mixed = fs.cat_ranges(["data/t.csv", "nothing", "code.py"], 1, 4)
    assert mixed[0] == T1[1:4] and mixed[2] == b"rin" and isinstance(mixed[1], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["nothing"], 0, 1, on_error="raise")
    assert fs.cat("images/val", recursive=True)["images/val/001.bin"] == IMAGES["images/val/001.bin"]
    assert fs.cat(["code.py", "data/empty.csv"]) == {"code.py": b"print(1)\n", "data/empty.csv": b""}
    fs.get("images/odd", str(tmp_path / "out"), recursive=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {k[11:]: v for k, v in ODD.items()}
    out = io.BytesIO()
    fs.get_file("data/t.csv", out)
    assert out.getvalue() == T1


def test_text_and_compression(fs: DvkFileSystem) -> None:
    with fs.open("data/t.csv", "r", newline="") as file:
        assert file.readline() == "id,price,note\n" and sum(1 for _ in file) == 40_000
    with fsspec.open("simplecache::dvk://v1@data/t.csv", dvk={"repo": fs.where.place}) as file:
        assert file.read() == T1


# ---------------------------------------------------------------- one version, whatever moves


def test_a_branch_that_moves_changes_no_reader(flow: Flow, tmp_path: Path) -> None:
    other = flow.clone(tmp_path / "moving")
    with reading(other.environ):
        fs = DvkFileSystem(str(other.top), "main")
        file = fs.open("data/t.csv")
        stored = pickle.dumps((fs, file))
        other.git("reset", "-q", "--hard", "v1")
        assert fs.cat_file("data/t.csv") == file.read() == T2
        again, same = pickle.loads(stored)
        assert again == fs and again.cat_file("dvk://main@data/t.csv") == same.read() == T2
        assert DvkFileSystem(str(other.top), "main").cat_file("data/t.csv") == T1  # whoever asks now
        assert DvkFileSystem(str(other.top)).rev == other.head()


def _in_a_child(fs: DvkFileSystem, file: Any, answers: Any) -> None:
    parts = [threading.active_count() > 0, fs.cat_file("images/val/007.bin"), file.read(), fs.cat_file("data/t.csv")]
    answers.put((os.getpid(), [len(p) if isinstance(p, bytes) else p for p in parts]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_read_on_with_connections_of_their_own(clone: Flow, counted: Counted, method: str) -> None:
    """While threads of the parent are reading, so that a fork finds their locks taken."""
    fs = DvkFileSystem(str(clone.top), "v1")
    file = fs.open("data/t.csv")
    file.seek(1000)
    stop = threading.Event()

    def busy() -> None:
        mine = random.Random(7)
        while not stop.is_set():
            fs.cat_file(f"images/train/{mine.randrange(60):03}.bin")

    threads = [threading.Thread(target=busy) for _ in range(3)]
    context: Any = multiprocessing.get_context(method)
    answers = context.Queue()
    for thread in threads:
        thread.start()
    try:
        children = [context.Process(target=_in_a_child, args=(fs, file, answers)) for _ in range(2)]
        for child in children:
            child.start()
        found = [answers.get(timeout=60) for _ in children]
        for child in children:
            child.join(60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert all(parts[1:] == [2007, len(T1) - 1000, len(T1)] for _, parts in found)
    assert len({pid for pid, _ in found} | {os.getpid()}) == 3
    assert file.read() == T1[1000:]


# ---------------------------------------------------------------- no more than is needed


def test_files_of_one_block_are_one_request(fs: DvkFileSystem, counted: Counted) -> None:
    fs.cat_file("images/val/000.bin")
    counted.reset()
    for name in IMAGES:
        assert fs.cat_file(name) == IMAGES[name]
    assert counted.requests == 0  # locator, pages and block came with the first
    assert fs.ls("images/train") and counted.requests == 0


def test_a_second_reader_finds_what_the_first_has_read(fs: DvkFileSystem, counted: Counted, clone: Flow) -> None:
    assert fs.cat_file("data/t.csv", 100, 200) == T1[100:200]
    counted.reset()
    with DvkFileSystem(str(clone.top), "v1").open("data/t.csv") as file:
        file.seek(5000)
        assert file.read(100) == T1[5000:5100]
    assert counted.requests == 0


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("dvk://v2@data/t.csv", NotFound, "no such revision.*did you mean v1"),
        ("dvk://v1@data/tt.csv", FileNotFoundError, "did you mean data/t.csv"),
        ("dvk://v1@date/t.csv", FileNotFoundError, "did you mean data/t.csv"),
        ("dvk://v1@images/vall/001.bin", FileNotFoundError, "did you mean images/val/001.bin"),
        ("dvk://v1@data/t.csv/x", FileNotFoundError, "no such file"),
        ("dvk://v1@data/t.csv.dvk", FileNotFoundError, "this is its pointer"),
        ("dvk://v1@images", IsADirectoryError, "is a folder at v1"),
        ("dvk://v1@../secret", FileNotFoundError, "no such file"),
        ("dvk://--upload-pack=x@data", DvkError, "not a revision"),
    ],
)
def test_errors_say_what_may_have_been_meant(clone: Flow, counted: Counted, url: str, kind: type, words: str) -> None:
    fs = DvkFileSystem(str(clone.top))
    with pytest.raises(kind) as caught:
        fs.open(url)
    said = f"{caught.value} {' '.join(getattr(caught.value, '__notes__', []))}"
    assert re.search(words, said), said
    assert kind is DvkError or fs.exists(url) == (kind is IsADirectoryError)


def test_nothing_can_be_written(fs: DvkFileSystem, tmp_path: Path) -> None:
    for call in (
        lambda: fs.open("x", "wb"),
        lambda: fs.pipe("x", b""),
        lambda: fs.pipe_file("data/t.csv", b""),
        lambda: fs.rm("data/t.csv"),
        lambda: fs.mkdir("new"),
        lambda: fs.mv("code.py", "other.py"),
        lambda: fs.copy("code.py", "other.py"),
        lambda: fs.put(str(tmp_path), "x", recursive=True),
        lambda: fs.touch("x"),
    ):
        with pytest.raises(NotImplementedError, match="can only be read") as caught:
            call()
        assert "dvk add" in caught.value.__notes__[0]


def test_data_that_is_nowhere_is_named_with_who_could_bring_it(flow: Flow, tmp_path: Path) -> None:
    other = flow.clone(tmp_path / "unpushed")
    other.version({"data/new.csv": b"1\n" * 5000}, "data/new.csv")
    third = other.clone(tmp_path / "third")
    with reading(third.environ):
        fs = DvkFileSystem(str(third.top))
        assert fs.size("data/new.csv") == 10_000
        with pytest.raises(DataMissing, match=r"neither here nor on origin; its pointer came with commit .* by Ada"):
            fs.open("data/new.csv")
        assert fs.cat_file("data/t.csv") == T2


def test_an_untrusted_remote_is_not_read(clone: Flow) -> None:
    environ = {**clone.environ}
    del environ["DVK_TRUST_REMOTES"]
    with reading(environ) as counted:
        fs = DvkFileSystem(str(clone.top))
        assert fs.ls("data") and fs.cat_file("code.py")
        for question in (lambda: fs.open("data/t.csv"), lambda: fs.ls("images"), lambda: fs.exists("images/val")):
            with pytest.raises(Refused, match="not trusted yet") as caught:
                question()
            assert "dvk remote trust origin" in caught.value.__notes__[0]
        assert counted.requests == 0


def test_a_remote_that_is_gone_is_an_error_and_not_an_empty_folder(flow: Flow, tmp_path: Path) -> None:
    other = flow.clone(tmp_path / "offline")
    os.rename(flow.remote_dir, tmp_path / "away")
    try:
        with reading(other.environ):
            fs = DvkFileSystem(str(other.top))
            for question in (lambda: fs.find("images"), lambda: fs.glob("images/*/*"), lambda: fs.open("data/t.csv")):
                with pytest.raises(DvkError, match="no dvk store here"):
                    question()
    finally:
        os.rename(tmp_path / "away", flow.remote_dir)


def test_a_pack_that_is_gone_is_an_error_and_so_is_a_damaged_one(flow: Flow, tmp_path: Path) -> None:
    """And what is right of the same version still arrives."""
    other = flow.clone(tmp_path / "damaged")
    packs = sorted(flow.remote_dir.glob("p/*/*"))
    kept = {pack: pack.read_bytes() for pack in packs}
    try:
        for pack in packs:
            pack.chmod(0o644)
            pack.write_bytes(kept[pack][:5000] + bytes(len(kept[pack]) - 5000))
        with reading(other.environ):
            fs = DvkFileSystem(str(other.top))
            for name in ("data/t.csv", "images/train/001.bin"):
                with pytest.raises(DvkError) as error:
                    fs.cat_file(name)
                assert "`dvk repair --remote`" in error.value.hint
            assert fs.cat_file("code.py") == b"print(1)\n"
    finally:
        for pack, data in kept.items():
            pack.write_bytes(data)


def test_a_locator_that_leads_nowhere_is_searched_around(flow: Flow, tmp_path: Path) -> None:
    other = flow.clone(tmp_path / "astray")
    locators = [p for p in flow.remote_dir.glob("l/*/*/*") if p.is_file()]
    kept = {path: path.read_bytes() for path in locators}
    try:
        for path in locators:
            path.unlink()
        with reading(other.environ):
            fs = DvkFileSystem(str(other.top), "v1")
            assert fs.cat_file("images/val/003.bin") == IMAGES["images/val/003.bin"]
            assert fs.ls("images", detail=False)[-1] == "images/val"
            assert fs.cat_file("data/t.csv") == T1
    finally:
        for path, data in kept.items():
            path.write_bytes(data)


# ---------------------------------------------------------------- other repositories


def test_a_version_of_a_repository_on_a_git_server(flow: Flow, tmp_path: Path) -> None:
    """Its history is copied once, without contents; a child process and a pickle need no second look at the server."""
    flow.git("clone", "-q", "--bare", str(flow.top), str(tmp_path / "churn.git"))
    environ = flow.environ | {"GIT_ALLOW_PROTOCOL": "git:file", "DVK_CACHE_HOME": str(tmp_path / "cache")}
    with GitDaemon(tmp_path, environ) as server, reading(environ):
        url = server.url("churn.git")
        fs = DvkFileSystem(url, "v1")
        assert fs.cat_file("data/t.csv") == T1 and fs.cat_file("code.py") == b"print(1)\n"
        assert fs.ls(f"dvk://{url}:v1@data", detail=False) == [
            *(f"dvk://{url}:v1@data/empty.csv", f"dvk://{url}:v1@data/t.csv")
        ]
        with fsspec.open(f"dvk://{url}:HEAD@data/t.csv") as file:
            assert file.read() == T2
        assert fs.size("images/val/001.bin") == 2001  # pointers are copied when they are asked for
        before = server.requests
        assert len(fs.ls("docs/many")) == 30  # their sizes: contents came together
        assert server.requests - before <= 2
        asked = server.requests
        again = pickle.loads(pickle.dumps(fs))
        assert again.cat_file("data/t.csv", 0, 10) == T1[:10] and again.isfile("images/val/002.bin")
        assert server.requests == asked
        with pytest.raises(NotFound, match="no such revision"):
            fs.open(f"dvk://{url}:v9@data/t.csv")
    close_all()
    with reading(environ), pytest.raises(DvkError, match="cannot be read"):
        DvkFileSystem(url, "main")
    with reading(environ):  # what is known by its commit needs no server
        assert DvkFileSystem(url, fs.rev).cat_file("data/t.csv") == T1
