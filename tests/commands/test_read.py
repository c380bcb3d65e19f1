"""`dvk.open`, `dvk.read_bytes`, `dvk.local_path`: any version of a file, from wherever it is, without a checkout."""

from __future__ import annotations

import fcntl
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from flowkit import Flow, csv, noise

import dvk
from dvk.commands.file_cache import FileCache, _let_go
from dvk.commands.where import close_all
from dvk.errors import Corrupt, DvkError, NotARepository, NotFound, UsageError

T1, T2 = csv(30_000, seed=1), csv(30_000, seed=2)
MODEL = noise(3_000_000, 5)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    home = tmp_path_factory.mktemp("read")
    flow = Flow(home / "repo", home)
    flow.write({"notes/readme.md": "zwei Wörter\r\nmore\n".encode()})
    flow.git("add", "notes")
    flow.version({"data/t.csv": T1, "models/a/best.bin": MODEL}, "data/t.csv", "models")
    flow.git("tag", "v1")
    flow.version({"data/t.csv": T2}, "data/t.csv")
    flow.push()
    return flow


@pytest.fixture(autouse=True)
def here(flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flow]:
    """A clone that holds no data, as the working folder of this process."""
    clone = flow.clone(tmp_path / "clone")
    for name, value in {**clone.environ, "DVK_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    clone.environ["DVK_CACHE_HOME"] = str(tmp_path / "cache")
    monkeypatch.chdir(clone.top)
    yield clone
    close_all()


def test_a_version_is_a_file(here: Flow) -> None:
    with dvk.open("data/t.csv", rev="v1") as file:
        assert file.size == len(T1) and file.seekable() and not file.writable()
        assert file.readline() == b"id,price,note\n" and file.tell() == 14
        assert file.seek(-10, os.SEEK_END) == len(T1) - 10 and file.read() == T1[-10:] and file.read(5) == b""
        file.seek(1000)
        assert file.peek(10)[:10] == T1[1000:1010] and file.read1(7) == T1[1000:1007]
        buffer = bytearray(100_000)
        assert file.readinto(buffer) == 100_000 and buffer == T1[1007:101_007]
    for use in (file.read, file.tell, file.readline, lambda: file.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert dvk.read_bytes("data/t.csv") == T2
    assert dvk.read_bytes("models/a/best.bin", rev="HEAD~1") == MODEL
    assert list(dvk.open("data/t.csv", rev="v1")) == T1.splitlines(keepends=True)


def test_text_is_read_as_the_built_in_open_reads_it(here: Flow) -> None:
    path = os.fsdecode(here.at("notes/readme.md"))
    for options in ({}, {"newline": ""}, {"encoding": "latin-1"}, {"encoding": "ascii", "errors": "replace"}):
        chosen = {"encoding": "utf-8", **options}
        with dvk.open("notes/readme.md", "r", **chosen) as version, open(path, **chosen) as plain:
            assert version.readlines() == plain.readlines()
    with pytest.raises(ValueError, match="encoding"):
        dvk.open("notes/readme.md", "rb", encoding="utf-8")  # type: ignore[call-overload]


def test_paths_count_from_the_top_and_dotted_ones_from_here(
    here: Flow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(here.top / "notes")
    for path in ("data/t.csv", "../data/t.csv", here.top / "data" / "t.csv", "data/t.csv/"):
        assert dvk.read_bytes(path) == T2
    assert dvk.read_bytes("./readme.md").startswith(b"zwei")
    monkeypatch.chdir(tmp_path)
    assert dvk.read_bytes(here.top / "data/t.csv", rev="v1") == T1  # the repository that it lies in
    assert dvk.read_bytes("data/t.csv", rev="v1", repo=here.top) == T1
    with here.repo() as repo:
        assert dvk.read_bytes("data/t.csv", rev="v1", repo=repo) == T1
    with pytest.raises(NotARepository):
        dvk.open("data/t.csv")


def test_what_was_staged_or_written_is_not_a_version(here: Flow) -> None:
    """`HEAD` is what is committed; and a new commit is seen by whoever opens after it."""
    here.version({"data/t.csv": b"new\n"}, "data/t.csv")
    assert dvk.read_bytes("data/t.csv") == b"new\n"
    here.write({"data/t.csv": b"newer\n"})
    here.add("data/t.csv")
    assert dvk.read_bytes("data/t.csv") == b"new\n"
    here.commit()
    assert dvk.read_bytes("data/t.csv") == b"newer\n"


def test_another_repository_by_its_folder_bare_or_not(here: Flow, flow: Flow, tmp_path: Path) -> None:
    bare = tmp_path / "bare.git"
    flow.git("clone", "-q", "--bare", str(flow.top), str(bare))
    assert dvk.read_bytes("data/t.csv", rev="v1", repo=bare) == T1
    file = dvk.open("data/t.csv", rev="v1", repo=str(bare))
    assert pickle.loads(pickle.dumps(file)).read() == T1


def test_reading_needs_no_git_program(here: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image with nothing but Python."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert dvk.read_bytes("data/t.csv", rev="v1") == T1 and dvk.read_bytes("data/t.csv") == T2
    assert dvk.read_bytes("notes/readme.md").startswith(b"zwei")
    with pytest.raises(NotFound, match="no such revision"):
        dvk.open("data/t.csv", rev="v2")
    with pytest.raises(FileNotFoundError, match=r"did you mean data/t\.csv"):
        dvk.open("data/tt.csv")


def test_a_plain_folder_has_the_version_of_its_pointers(here: Flow, tmp_path: Path) -> None:
    """As in an image or an archive: no Git, no history."""
    plain = tmp_path / "plain"
    subprocess.run(["cp", "-r", str(here.top), str(plain)], check=True)
    subprocess.run(["rm", "-rf", str(plain / ".git")], check=True)
    assert dvk.read_bytes("data/t.csv", repo=plain) == T2
    assert dvk.read_bytes("models/a/best.bin", repo=plain) == MODEL
    with pytest.raises(DvkError, match="no Git history"):
        dvk.open("data/t.csv", rev="v1", repo=plain)


def test_settings_that_change_are_seen_by_the_next_open(here: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVK_TRUST_REMOTES")
    with pytest.raises(DvkError, match="not trusted"):
        dvk.open("data/t.csv")
    monkeypatch.setenv("DVK_TRUST_REMOTES", f"file://{here.remote_dir}")
    assert dvk.read_bytes("data/t.csv") == T2


def test_wrong_requests_are_named(here: Flow) -> None:
    with pytest.raises(NotFound, match="no such revision") as unknown:
        dvk.open("data/t.csv", rev="v2")
    assert "did you mean v1" in unknown.value.__notes__[0]
    with pytest.raises(FileNotFoundError, match=r"did you mean models/a/best\.bin"):
        dvk.open("models/a/bset.bin")
    with pytest.raises(IsADirectoryError):
        dvk.open("models")
    with pytest.raises(NotImplementedError, match="can only be read"):
        dvk.open("data/t.csv", "w")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="invalid mode"):
        dvk.open("data/t.csv", "rq")  # type: ignore[call-overload]
    with pytest.raises(UsageError):
        dvk.open("")
    with pytest.raises(NotFound, match="no remote has this name"):
        dvk.open("data/t.csv", remote="nowhere")
    with pytest.raises(UsageError, match="not the URL of a Git repository"):
        dvk.open("data/t.csv", repo="ext::sh -c id")


# ---------------------------------------------------------------- local_path


def test_a_path_for_libraries_that_want_one(here: Flow, tmp_path: Path) -> None:
    path = dvk.local_path("models/a/best.bin", rev="v1")
    assert os.path.basename(path) == "best.bin" and path.startswith(str(tmp_path / "cache"))
    assert (Path(path).read_bytes() == MODEL and not os.access(path, os.W_OK)) or os.geteuid() == 0
    assert os.stat(path).st_mode & 0o222 == 0
    before = os.stat(path)
    assert dvk.local_path("models/a/best.bin") == path  # the same content at another revision
    assert os.stat(path).st_ino == before.st_ino
    assert Path(dvk.local_path("notes/readme.md")).read_bytes().startswith(b"zwei")


def test_a_file_that_somebody_wrote_to_is_made_again(here: Flow) -> None:
    path = dvk.local_path("data/t.csv")
    for spoil in (lambda f: f.write(b"X"), lambda f: f.truncate(10)):
        os.chmod(path, 0o644)
        with open(path, "r+b") as file:
            spoil(file)
        assert Path(dvk.local_path("data/t.csv")).read_bytes() == T2
    os.utime(path)  # only touched: it is looked into, and kept
    inode = os.stat(path).st_ino
    assert dvk.local_path("data/t.csv") == path and os.stat(path).st_ino == inode


def test_what_is_not_the_file_never_gets_its_name(tmp_path: Path) -> None:
    cache = FileCache(os.fsencode(tmp_path / "files"))
    name = blake3(b"right").digest()
    with pytest.raises(Corrupt, match="fail their hash"):
        cache.get(name, 5, b"x.bin", lambda out: out(b"wrong"))
    with pytest.raises(KeyboardInterrupt):
        cache.get(name, 5, b"x.bin", _interrupted)
    assert [p for p in (tmp_path / "files").rglob("*") if p.is_file() and p.name != "lock"] == []
    assert Path(os.fsdecode(cache.get(name, 5, b"x.bin", lambda out: out(b"right")))).read_bytes() == b"right"


def _interrupted(_out: object) -> None:
    raise KeyboardInterrupt


_MAKE = """
import os, sys
from blake3 import blake3
from dvk.commands.file_cache import FileCache, _let_go
cache = FileCache(os.fsencode(sys.argv[1]), 1_000_000)
for i in map(int, sys.argv[2:]):
    data = bytes([i]) * 300_000
    print(os.fsdecode(cache.get(blake3(data).digest(), len(data), b"f.bin", lambda out: out(data))), flush=True)
sys.stdin.read()
"""


def _making(folder: Path, *numbers: int) -> tuple[subprocess.Popen[str], list[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _MAKE, str(folder), *map(str, numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, [process.stdout.readline().strip() for _ in numbers]


def test_the_cache_keeps_its_bound_and_what_a_process_was_given(tmp_path: Path) -> None:
    """The longest unused goes first, though neither what a living process holds nor what the last hour asked for."""
    folder = tmp_path / "files"
    holder, held = _making(folder, 1)
    other, rest = _making(folder, 2, 3)
    other.communicate("")
    assert all(map(os.path.exists, [*held, *rest]))  # within the bound
    third, new = _making(folder, 4)
    third.communicate("")
    assert all(map(os.path.exists, [*held, *rest, *new]))  # above it, and all of this hour
    for number, path in enumerate([*held, *rest, *new]):
        long_ago = time.time() - 10 * 3600 + number
        os.utime(os.path.dirname(path), (long_ago, long_ago))
    fourth, newest = _making(folder, 5)
    fourth.communicate("")
    assert [os.path.exists(p) for p in [*held, *rest, *new, *newest]] == [True, False, False, True, True]
    holder.communicate("")


def test_a_full_cache_is_not_looked_through_for_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    plain = FileCache._places
    monkeypatch.setattr(FileCache, "_places", lambda self: looks.append(1) or plain(self))
    cache = FileCache(os.fsencode(tmp_path / "files"), 4_000_000)
    for i in range(600):
        data = i.to_bytes(4) * 2048
        path = cache.get(blake3(data).digest(), len(data), b"f.bin", lambda out, data=data: out(data))
        os.utime(os.path.dirname(path), (i + 1, i + 1))
        _let_go(os.path.dirname(path))
    assert sum(held for _, held, _ in plain(cache)) <= 4_000_000 and len(looks) < 300


def test_processes_that_want_the_same_file_at_once_all_get_it(here: Flow) -> None:
    work = (
        "import dvk, hashlib; print(hashlib.sha256(open(dvk.local_path('models/a/best.bin'),'rb').read()).hexdigest())"
    )
    children = [subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({child.communicate()[0] for child in children}) == 1 and all(c.returncode == 0 for c in children)


def test_the_work_tree_shares_its_blocks_where_it_can(here: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the sharing itself is played, since few filesystems of test machines can; what is shared is proven."""
    from dvk.commands import file_cache

    shared: list[bytes] = []

    def share(fd: int, alike: bytes, size: int) -> bool:
        with open(alike, "rb") as file:
            data = file.read()
        os.pwrite(fd, data, 0)
        shared.append(alike)
        return len(data) == size

    monkeypatch.setattr(file_cache, "_share", share)
    here.write({"data/t.csv": T2, "models/a/best.bin": MODEL[:-1] + b"?"})
    assert Path(dvk.local_path("data/t.csv")).read_bytes() == T2
    assert Path(dvk.local_path("models/a/best.bin")).read_bytes() == MODEL  # another content in the work tree
    assert len(shared) == 2


def test_threads_that_share_a_file_each_read_where_they_sought(here: Flow) -> None:
    """As DuckDB does; and whoever has not sought goes on where the last read ended."""
    file = dvk.open("data/t.csv")
    wrong: list[int] = []

    def work(seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(300):
            at = chosen.randrange(len(T2) - 5000)
            file.seek(at)
            if file.read(2000) != T2[at : at + 2000]:
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    file.seek(100)
    thread = threading.Thread(target=lambda: wrong.append(file.tell()))
    thread.start()
    thread.join()
    assert wrong == [100] and file.read(5) == T2[100:105]


def test_what_others_add_is_read_from_here_though_no_remote_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook reads on while the terminal beside it makes versions: each is had from the local store at once."""
    flow = Flow(tmp_path / "writer", tmp_path, remote="s3://acme-away/x")
    for name, value in {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(flow.top)
    for seed in range(3):
        data = noise(50_000, seed)
        flow.version({"x.bin": data}, "x.bin")
        assert dvk.read_bytes("x.bin") == data


def test_an_open_file_is_read_on_after_its_data_was_packed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dvk gc` beside a reader takes a pack away that holds what nobody needs beside what the reader reads."""
    flow = Flow(tmp_path / "packed", tmp_path)
    keep, drop = noise(3_000_000, 11), noise(4_000_000, 12)
    flow.version({"keep.bin": keep, "drop.bin": drop}, "keep.bin", "drop.bin")
    monkeypatch.chdir(flow.top)
    with dvk.open("keep.bin") as file:
        assert file.read(10) == keep[:10]
        flow.dvk("rm", "drop.bin")
        flow.git("commit", "-q", "--amend", "-m", "only one")
        flow.git("reflog", "expire", "--expire=now", "--all")
        flow.git("gc", "-q", "--prune=now")
        before = {p.name for p in (flow.top / ".git/dvk/store").glob("p/*/*")}
        flow.dvk("gc", "-y", "--young", "0s", "--exclusive")
        assert {p.name for p in (flow.top / ".git/dvk/store").glob("p/*/*")}.isdisjoint(before)
        assert file.read() == keep[10:]
    assert dvk.read_bytes("keep.bin") == keep


def test_a_folder_that_is_called_like_a_url_is_not_what_a_url_means(
    here: Flow, flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a stranger's repository could stand in for the one that a script names, when it runs in there."""
    here.git("clone", "-q", os.fsdecode(flow.top), "nobody@localhost.invalid:acme")
    with pytest.raises(DvkError, match="cannot be read"):
        dvk.open("data/t.csv", repo="nobody@localhost.invalid:acme")
    assert dvk.open("notes/readme.md", repo="./nobody@localhost.invalid:acme").read(4) == b"zwei"


def test_a_repository_in_the_place_of_a_deleted_one_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (b"first", b"second"):
        subprocess.run(["git", "init", "-q", "again"], check=True)
        (tmp_path / "again/x.txt").write_bytes(content)
        subprocess.run(["git", "-C", "again", "add", "x.txt"], check=True)
        subprocess.run(["git", "-C", "again", "commit", "-qm", "x"], check=True)
        assert dvk.read_bytes("x.txt", repo="again") == content
        (tmp_path / "again").rename(tmp_path / content.decode())


def test_a_file_is_held_though_the_cache_was_emptied_or_is_being_emptied(tmp_path: Path) -> None:
    """What a process was given stays while it lives, also what it got again after somebody removed the cache."""
    folder = tmp_path / "files"
    cache = FileCache(os.fsencode(folder), 1_000_000)
    data = b"x" * 300_000
    for _ in range(2):
        path = os.fsdecode(cache.get(blake3(data).digest(), len(data), b"f.bin", lambda out: out(data)))
        place = os.path.dirname(path)
        os.utime(place, (1, 1))
        other, _ = _making(folder, 1, 2, 3, 4)
        other.communicate("")
        assert os.path.exists(path)
        shutil.rmtree(folder)
    os.makedirs(place)
    (Path(place) / "f.bin").write_bytes(data)
    remover = os.open(place, os.O_RDONLY)
    fcntl.flock(remover, fcntl.LOCK_EX)
    getting: list[bytes] = []
    thread = threading.Thread(
        target=lambda: getting.append(cache.get(blake3(data).digest(), len(data), b"f.bin", lambda out: out(data)))
    )
    thread.start()
    time.sleep(0.1)
    assert not getting  # it waits for who removes the folder
    shutil.rmtree(place)
    os.close(remover)
    thread.join()
    assert Path(os.fsdecode(getting[0])).read_bytes() == data


_FORK_AMID_A_READ = """
import os, signal, threading, warnings, dvk
warnings.simplefilter("ignore")
file = dvk.open("models/a/best.bin")
raw, begun, go_on = file._buffered.raw, threading.Event(), threading.Event()
plain = raw._source.readinto
raw._source.readinto = lambda *a: (begun.set(), go_on.wait(), plain(*a))[2]
thread = threading.Thread(target=file.read, args=(10,))
thread.start()
begun.wait()
child = os.fork()
if not child:
    signal.alarm(20)
    file.close()
    del file, raw
    os._exit(0)
status = os.waitpid(child, 0)[1]
go_on.set()
thread.join()
print(status)
"""


def test_a_child_closes_a_file_that_a_thread_of_its_parent_was_reading(here: Flow) -> None:
    done = subprocess.run([sys.executable, "-c", _FORK_AMID_A_READ], capture_output=True, text=True, check=False)
    assert done.stdout == "0\n", done.stderr


def test_a_pointer_that_lies_about_the_size_gives_no_part_of_another_file(here: Flow) -> None:
    """Also where the file of that id is open already, with the size that it has."""
    assert dvk.read_bytes("data/t.csv") == T2
    text = here.read("data/t.csv.dvk")
    for name, size in (("short", 100), ("long", 10**11)):
        here.write({f"data/{name}.csv.dvk": text.replace(b"size %d" % len(T2), b"size %d" % size)})
        here.git("add", "-f", f"data/{name}.csv.dvk")
    here.git("commit", "-q", "-m", "lies")
    for name in ("short", "long"):
        with pytest.raises(DvkError):
            dvk.open(f"data/{name}.csv").readline()
