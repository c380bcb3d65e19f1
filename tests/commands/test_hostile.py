"""What strangers put into a repository: names, settings, links and programs, against the verbs that meet them.

docs/reliability.md has the table of attacks (A1 to A30) and says which test holds which.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flowkit import Flow, csv
from test_remote_trust import Listener

from dvk.backend.local import LocalBackend
from dvk.commands.get import get
from dvk.errors import DvkError, FormatError
from dvk.ids import EMPTY_FILE
from dvk.store.listing import Entries, Kind
from dvk.store.pages import ListKind, format_page, page_id, parse_page
from dvk.store.paths import why_bad
from dvk.store.writer import Writer
from dvk.workspace.pointer import Pointer, format_pointer

_GIT = [b".git", b".dvk", b"git~1"]
_INVISIBLE = ["\u200b", "\u200c", "\u200d", "\u200e", "\u202a", "\u206a", "\u206f", "\ufeff"]


def hostile_names() -> list[bytes]:
    """Paths inside a folder that no folder may have, each a way that has worked somewhere."""
    out = {b"", b".", b"..", b"/", b"a//b", b"a/", b"/a", b"a/.", b"a/..", b"a/../b", b"./a", b"../a", b"a\0b", b"\0"}
    out |= {b"../" * n + b"etc/passwd" for n in range(1, 9)}
    out |= {b"a/" * n + b"../" * (n + 1) + b"x" for n in range(1, 9)}
    out |= {b"/etc/cron.d/x", b"/etc/ssh/authorized_keys", b"x" * 256, b"/".join([b"d" * 200] * 21)}
    for name in _GIT:
        text = name.decode()
        spellings = {text, text.upper(), text.title(), text + " ", text + ".", text + " . .", text + ":x"}
        spellings |= {text + "::$INDEX_ALLOCATION", text + ":$DATA", text.swapcase()}
        spellings |= {text[:i] + c + text[i:] for c in _INVISIBLE for i in (0, 1, len(text))}
        for spelling in spellings:
            out |= {spelling.encode(), b"a/" + spelling.encode() + b"/hooks/post-checkout"}
    out |= {b"GIT~%d" % n for n in (2, 3, 4, 9, 12)}
    out |= {".g\u0131t".encode()[:0] + b"a/b/../../../.git/config", b".git/config", b".git/../.git/x"}
    return sorted(n for n in out if why_bad(n))


NAMES = hostile_names()


def tree(top: Path) -> dict[str, bytes]:
    """All that lies below `top`, hidden files included, but for Git's and dvk's own state."""
    found = {}
    for path in top.rglob("*"):
        inside = path.relative_to(top)
        if inside.parts[0] != ".git" or inside.parts[1:2] in (("hooks",), ("config",)):
            found[str(inside)] = path.read_bytes() if path.is_file() else b""
    return found


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    (tmp_path / "outer").mkdir()
    return Flow(tmp_path / "outer" / "a", tmp_path / "outer")


class TestNames:
    def test_there_are_two_hundred_of_them(self) -> None:
        assert len(NAMES) >= 200

    def test_no_page_of_a_listing_may_hold_one(self) -> None:
        for name in NAMES:
            entries = Entries.of([(name, Kind.FILE, 0, EMPTY_FILE, b"")])
            try:
                data = format_page(ListKind.LISTING, 0, entries)
            except (ValueError, OverflowError, DvkError):
                continue  # it cannot even be spelled
            with pytest.raises(FormatError):
                parse_page(data, ListKind.LISTING, subject="x")

    def test_a_folder_with_one_is_neither_checked_out_nor_pulled_nor_read(self, flow: Flow, tmp_path: Path) -> None:
        """A commit with a pointer for each, whose data a hostile remote and a poisoned store hold in full."""
        good = Entries.of([(b"fine", Kind.FILE, 0, EMPTY_FILE, b"")])
        pointers: dict[str | bytes, bytes] = {}
        with flow.repo() as repo:
            with Writer(repo.store) as writer:
                for i, name in enumerate([b"fine", *NAMES]):
                    entries = good if not i else Entries.of([(name, Kind.FILE, 0, EMPTY_FILE, b"")])
                    data = format_page(ListKind.LISTING, 0, entries)
                    root = page_id(ListKind.LISTING, data)
                    writer.add_page(root, data)
                    pointers[f"n{i:03}.dvk"] = format_pointer(Pointer("dir", root, 0, files=1))
                writer.flush()
            remote = LocalBackend(str(flow.remote_dir))
            for prefix in ("dvk.json", "p/", "m/"):
                for item in list(repo.store.backend.list(prefix)):
                    remote.put(item.key, [repo.store.backend.get(item.key, max_bytes=1 << 30)])
        flow.write(pointers)
        flow.git("add", "-A")
        flow.commit()
        clone = flow.clone(tmp_path / "outer" / "b")
        before = tree(tmp_path / "outer" / "a"), tree(tmp_path / "outer" / "b")
        assert len(flow.checkout(ok=False).failures) == len(NAMES)
        assert flow.exists("n000/fine")
        assert len(clone.pull(ok=False).failures) == len(NAMES)
        assert clone.exists("n000/fine")
        with flow.repo() as repo:
            for i in range(1, len(NAMES) + 1):
                with pytest.raises(DvkError):
                    get(repo, f"HEAD:n{i:03}", str(tmp_path / "outer" / "got"))
        for top, was in zip(("a", "b"), before, strict=True):
            now = tree(tmp_path / "outer" / top)
            new = {p for p in set(now) - set(was) if not p.startswith("n000")}
            assert new <= {f"n{i:03}" for i in range(1, 400)}, "an empty folder at most"
            assert all(now[p] == data for p, data in was.items())
        assert sorted(os.listdir(tmp_path / "outer")) == ["a", "b", "remote"]

    def test_one_on_disk_is_refused_by_add_and_named(self, flow: Flow) -> None:
        made = []
        for i, name in enumerate(NAMES):
            parts = name.split(b"/")
            if b"\0" in name or {b"", b".", b".."} & set(parts) or max(map(len, parts)) > 255 or len(name) > 3000:
                continue  # no filesystem holds it
            flow.write({b"d%03d/" % i + name: b"x"})
            made.append(i)
        assert len(made) > 100
        for i in made:
            with pytest.raises(DvkError) as caught:
                flow.add(f"d{i:03}")
            assert str(caught.value).isprintable()
            assert not flow.exists(f"d{i:03}.dvk")


def hostile_urls(port: int) -> list[str]:
    """URLs that lead to a server of the attacker, each in another way."""
    host = f"127.0.0.1:{port}"
    schemes = ["http", "https", "ssh", "sftp", "ftp", "git", "webdav", "webhdfs", "hdfs", "smb", "dask", "jupyter"]
    schemes += ["s3", "s3a", "gs", "gcs", "az", "abfs", "adl", "oci", "oss", "github", "dvk", "memory", "reference"]
    schemes += [
        "zip",
        "tar",
        "blockcache",
        "filecache",
        "simplecache",
        "cached",
        "libarchive",
        "generic",
        "root",
        "box",
    ]
    out = [f"{s}://{host}/x" for s in schemes]
    out += [
        f"{s}::http://{host}/x" for s in ("simplecache", "filecache", "blockcache", "reference", "zip", "ext", "dir")
    ]
    out += [f"{s}://user:secret@{host}/x" for s in ("http", "https", "s3", "ssh", "ftp")]
    out += [f"{s}://{host}@evil.example/x" for s in ("http", "s3", "ssh")]
    out += [f"http://{h}:{port}/x" for h in ("localhost", "[::1]", "127.1", "0x7f000001", "2130706433", "0.0.0.0")]
    out += [
        f"http://{host}/{p}" for p in ("..", "a/../b", "x?y", "x#y", "%2e%2e/x", "x;y", " x", "x\\y", "\\u001b[31m")
    ]
    out += [f"-o{x}" for x in (f"ProxyCommand=curl {host}", f"http://{host}", "x")]
    out += [f"--upload-pack=curl {host}", f"|curl {host}", f"$(curl {host})", f"`curl {host}`", f";curl {host}"]
    out += [f"http:{host}/x", f"http:/{host}/x", f"http:///{host}/x", f"//{host}/x", f"{host}/x", f"@{host}:x"]
    out += [
        f"file://{host}/x",
        f"file:////{host}/x",
        f"\\\\\\\\{host}\\\\x",
        f"http\\u0000://{host}",
        f"s3://b@{host}/x",
    ]
    out += [f"http://{host}/x\\nHost: evil", f"http://{host}\\r\\nX: y", f"  http://{host}/x", f"HTTP://{host}/x"]
    out += [f"s3://{host}/x?endpoint_url=http://{host}", f"s3://acme/x?endpoint={host}", f"http://{host}/" + "x" * 500]
    out += ["/etc", "/", "/etc/ssh", "/proc/self", "file:///etc", "../../x", "~/x", "$HOME/x", "C:\\\\x", "."]
    return out


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


def test_a_hundred_hostile_urls_make_no_connection(flow: Flow, listener: Listener, tmp_path: Path) -> None:
    """As the remote of a cloned repository: the verbs refuse, nobody is contacted, no folder is read or made."""
    urls = hostile_urls(listener.port)
    assert len(set(urls)) >= 100
    flow.version({"t.csv": csv(20)}, "t.csv")
    flow.environ = {**flow.environ, "DVK_TRUST_REMOTES": "", "AWS_EC2_METADATA_DISABLED": "true"}
    for url in urls:
        flow.write({"dvk.toml": f'format = 1\n[remote.origin]\nurl = "{url}"\n'.encode()})
        for verb in (flow.push, flow.pull if url.startswith("http") else flow.push):
            with contextlib.suppress(DvkError):
                verb(ok=False)
                assert verb == flow.pull, f"{url!r} was taken"
    assert listener.seen == 0
    assert sorted(os.listdir(tmp_path / "outer")) == ["a"]


def test_planted_programs_are_never_run(flow: Flow, tmp_path: Path) -> None:
    """A8: fake programs in the work tree, with `.` and the work tree itself first in PATH."""
    mark = tmp_path / "was run"
    for name in ("git", "ssh", "python", "python3", "sh", "sort", "less", "diff", "dvk", "git-lfs"):
        flow.write({name: f"#!/bin/sh\ntouch '{mark}'\nexit 1\n".encode(), f"bin/{name}": b"#!/bin/sh\nexit 1\n"})
        os.chmod(flow.at(name), 0o755)
        os.chmod(flow.at(f"bin/{name}"), 0o755)
    flow.write({"t.csv": csv(30), "d/1": b"1"})
    path = f".:{flow.top}:bin:{flow.environ['PATH']}"
    verbs = [
        ("add", "t.csv", "d"),
        ("status",),
        ("push",),
        ("log", "t.csv"),
        ("diff",),
        ("checkout",),
        ("doctor",),
        ("verify",),
    ]
    for argv in verbs:
        code, said = flow.dvk(*argv, environ={"PATH": path})
        assert code == 0 or argv[0] == "doctor", (argv, said)
        flow.commit()
    assert not mark.exists()


CANARIES = {
    "AWS_SECRET_ACCESS_KEY": "CANARYsecretKey0123456789abcdefghijklmno",
    "AWS_SESSION_TOKEN": "CANARYtoken0123456789",
    "DVK_CANARY_PASSWORD": "CANARYpassword",
}
URL_CANARY = "CANARYinurl"


def test_no_secret_reaches_output_logs_store_or_git(flow: Flow, tmp_path: Path) -> None:
    """A21: secrets of the environment, of the user's configuration and of a mistyped URL, under DVK_DEBUG."""
    config = tmp_path / "config"
    config.mkdir()
    (config / "config.toml").write_text('[remote.backup]\nurl = "s3://acme-canary/x"\nregion = "eu-west-1"\n')
    environ = {**CANARIES, "AWS_ACCESS_KEY_ID": "AKIAX", "DVK_CONFIG_HOME": str(config), "DVK_DEBUG": "1"}
    environ |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_EC2_METADATA_DISABLED": "true"}
    flow.write({"t.csv": csv(30)})
    said = ""
    for argv in (
        ("add", "t.csv"),
        ("doctor", "--json"),
        ("remote", "add", "bad", f"s3://key:{URL_CANARY}@bucket/x"),
        ("remote", "add", "worse", f"s3://bucket/x?X-Amz-Signature={URL_CANARY}"),
        ("config", "remote.bad.secret_key", URL_CANARY),
        ("push", "--remote", "nobody"),
        ("push", "--json"),
        ("get", "--repo", f"https://me:{URL_CANARY}@127.0.0.1:9/x.git", "t.csv", "-o", str(tmp_path / "x")),
        ("status", "--json"),
        ("remote", "list"),
    ):
        said += flow.dvk(*argv, environ=environ)[1]
    flow.git("add", "-A")
    flow.commit()
    places = [flow.top, tmp_path / "outer"]
    for canary in (*CANARIES.values(), URL_CANARY):
        assert canary not in said
        for place in places:
            found = subprocess.run(["grep", "-rlF", canary, str(place)], capture_output=True, text=True, check=False)
            assert found.stdout == "", canary
    history = flow.git("log", "-p", "--all")
    assert "CANARY" not in history


def test_a_pickle_is_never_loaded(flow: Flow, tmp_path: Path) -> None:
    """A19: two versions of a pickle, plain and inside npy and npz, under `diff`."""
    mark = tmp_path / "was loaded"
    bomb = b"cposix\nsystem\n(S'touch %s'\ntR." % os.fsencode(mark)
    head = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    npy = b"\x93NUMPY\x01\x00v\x00" + head + bomb
    names = ("a.pkl", "a.npy", "a.npz", "a.pt", "a.safetensors", "a.joblib", "a.parquet")
    flow.version({name: npy if name == "a.npy" else bomb for name in names}, *names)
    flow.write({name: (npy if name == "a.npy" else bomb) + b"." for name in names})
    for name in names:
        code, said = flow.dvk("diff", "--", name)
        assert "Traceback" not in said and "bug" not in said, said
        assert code in (0, 21), said
    assert not mark.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_an_unreadable_file_stops_an_add_that_another_user_runs(flow: Flow) -> None:
    """T24: root ignores permission bits, so this runs as nobody."""
    flow.write({"d/open": b"1", "d/closed": b"2"})
    os.chmod(flow.at("d/closed"), 0)
    subprocess.run(["chown", "-R", "65534:65534", str(flow.top)], check=True)
    for folder in (flow.top, *flow.top.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            os.chmod(folder, folder.stat().st_mode | 0o011)
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set=-all"]
    done = subprocess.run(
        [*drop, sys.executable, "-m", "dvk", "add", "d"],
        cwd=flow.top,
        env={**flow.environ, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 16, done.stderr
    assert "d/closed" in done.stderr and "permission" in done.stderr
    assert not flow.exists("d.dvk")
