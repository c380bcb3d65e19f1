"""Small projects in the state before a verb, and what has to hold after the verb was struck: the one oracle.

    stage = build("push", place)
    stage.freeze()
    ...strike the verb...
    stage.check_struck(run); run the same command again; stage.check_done()
    stage.reset()

What has to hold, whatever was struck (INV, docs/reliability.md):

1. every version that was acknowledged before is read back bit for bit, from the local store and from the remote;
2. each of the user's files is untouched, or is exactly the old or the new one;
3. no object lies under a final name that is not its hash;
4. `dvk verify` says the same, where the verb exists;
5. the same command succeeds as soon as the fault is gone, and then all is as if nothing had happened;
6. no temporary file is left that Git could see, and no more of them than one run makes.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from blake3 import blake3

from dvk.cli import app
from dvk.cli.exit_codes import TABLE
from dvk.commands.get import get
from dvk.commands.repo import Repo
from dvk.commands.status import status
from dvk.errors import DvkError
from dvk.testing.command import Broken
from dvk.testing.strike import Ran

Files = Mapping[str, tuple[str, int]]  #: path -> BLAKE3 and length
_CODES = {row.code for row in TABLE}
_TEMPORARY = re.compile(r"\.dvk-[0-9a-f]{32}\.tmp")
_MINE = (".dvk", "dvk.toml", ".gitattributes")
MAX_LEFTOVERS = 64
_DAMAGE = 23  # of `verify` and `repair`: said in their answer


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not compress; equal seeds give equal bytes."""
    return random.Random(seed).randbytes(size)


def table(rows: int, seed: int = 0) -> bytes:
    """A CSV; tables of one seed start alike."""
    source = random.Random(seed)
    return b"id,price,note\n" + b"".join(b"%d,%.4f,n%d\n" % (i, source.random(), i % 17) for i in range(rows))


def content_of(path: str) -> tuple[str, int]:
    """BLAKE3 and length of a file."""
    with open(path, "rb") as f:
        data = f.read()
    return blake3(data).hexdigest(), len(data)


def files_of(top: str, *, content: Callable[[str], tuple[str, int]] = content_of) -> Files:
    """What lies below `top` and is neither Git's nor dvk's own, temporary files of the killed left out."""
    found = {}
    for folder, folders, names in os.walk(top):
        folders[:] = [f for f in folders if f != ".git"]
        for name in names:
            path = os.path.join(folder, name)
            if name.endswith(_MINE) or _TEMPORARY.fullmatch(name) or os.path.islink(path):
                continue
            found[os.path.relpath(path, top)] = content(path)
    return found


@dataclass
class Stage:
    """A work tree at `place/work` with a remote beside it, and a verb that is about to run."""

    place: str
    argv: tuple[str, ...] = ()
    versions: dict[str, Files] = field(default_factory=dict)  #: commit -> what it holds
    here: set[str] = field(default_factory=set)  #: commits whose data the local store acknowledged
    there: set[str] = field(default_factory=set)  #: commits whose push was acknowledged
    sent: set[str] = field(default_factory=set)  #: commits that the verb pushes
    brought: set[str] = field(default_factory=set)  #: commits whose data is here when the verb succeeded
    damaged: set[str] = field(default_factory=set)  #: objects of the local store that are damaged until then
    before: Files = field(default_factory=dict)
    after: Files = field(default_factory=dict)  #: files of the work tree when the verb succeeded
    got: Files | None = None  #: files below `out` when the verb succeeded
    environ: dict[str, str] = field(default_factory=dict)
    saved: str = ""
    is_hook: bool = False  #: what went wrong is said and is no error, since Git has done its part
    name: str = ""  #: of `STAGES`

    @property
    def top(self) -> str:
        """The work tree."""
        return os.path.join(self.place, "work")

    @property
    def remote(self) -> str:
        """The remote's folder."""
        return os.path.join(self.place, "remote")

    @property
    def store(self) -> str:
        """The local store's folder."""
        return self.environ.get("DVK_STORE", os.path.join(self.top, ".git", "dvk", "store"))

    # ------------------------------------------------------------ making

    def init(self, url: str) -> None:
        """An empty work tree whose default remote is `url`."""
        os.makedirs(self.top)
        os.makedirs(self.environ["HOME"], exist_ok=True)
        self.git("init", "-q", "-b", "main")
        self.write({"dvk.toml": f'format = 1\n[remote.origin]\nurl = "{url}"\n'.encode()})
        self.git("add", "dvk.toml")
        self.git("commit", "-q", "-m", "a remote")

    def repo(self) -> Repo:
        """As a command sees it."""
        return Repo(self.top, environ=self.environ)

    def git(self, *arguments: str) -> str:
        """The output of git in the work tree."""
        done = subprocess.run(["git", *arguments], cwd=self.top, env=self.environ, capture_output=True, check=False)
        if done.returncode:
            raise Broken(f"git {' '.join(arguments)}: {os.fsdecode(done.stderr)}")
        return os.fsdecode(done.stdout).strip()

    def dvk(self, *argv: str) -> None:
        """Run a verb in the work tree, undisturbed, in this process: one of its own would cost more than the verb."""
        said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with contextlib.chdir(self.top):
            code = app.run(
                argv,
                environ=self.environ,
                stdin=io.StringIO(),
                stdout=said,
                stderr=said,
                table=app.VERBS,
                groups=app.GROUPS,
            )
        if code:
            said.seek(0)
            raise Broken(f"dvk {' '.join(argv)}: {said.read()}")

    def write(self, files: Mapping[str, bytes | None]) -> None:
        """Write files of the user's, or remove them (None)."""
        for name, data in files.items():
            path = os.path.join(self.top, name)
            if data is None:
                os.unlink(path)
                continue
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as f:
                f.write(data)

    def commit(self, *paths: str) -> str:
        """`dvk add`, commit."""
        self.dvk("add", *paths)
        self.git("commit", "-q", "--allow-empty", "-m", "a version")
        commit = self.git("rev-parse", "HEAD")
        self.versions[commit] = files_of(self.top)
        self.here.add(commit)
        return commit

    def freeze(self) -> Stage:
        """Remember this state for `reset`."""
        self.before = files_of(self.top)
        self.saved = self.place.rstrip("/") + ".saved"
        shutil.copytree(self.place, self.saved, symlinks=True)
        return self

    def reset(self) -> None:
        """Back to the state that `freeze` found."""
        for name in os.listdir(self.place):
            shutil.rmtree(os.path.join(self.place, name), ignore_errors=True)
        shutil.copytree(self.saved, self.place, symlinks=True, dirs_exist_ok=True)

    def remove(self) -> None:
        """Take both away."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.rmtree(self.saved, ignore_errors=True)

    # ------------------------------------------------------------ looking

    def check_struck(self, run: Ran) -> None:
        """What holds right after the strike.

        Raises:
            Broken: a promise was.
        """
        self.check_words(run)
        if run.code == 0:
            self._check_success(run)
        self._check_files()
        self.check_objects(damaged=self.damaged if run.code else set())
        self.check_versions(run)
        if self.argv[0] == "add":
            self.check_pointers()
        self._check_index()

    def check_done(self) -> None:
        """What holds after the same command has run again, undisturbed.

        Raises:
            Broken: a promise was.
        """
        found = files_of(self.top)
        if found != self.after:
            raise Broken(f"after the same command again: {differences(found, self.after)}")
        self.check_objects()
        self.check_versions(None)
        if self.argv[0] in ("rm", "mv", "resolve", "restore", "import", "update"):
            self._check_in_step()
        if self.argv[0] in ("add", "checkout", "pull", "push", "status"):
            with self.repo() as repo:
                now, problems = status(repo)
            if self.argv[0] == "status" and now.clean:
                raise Broken(f"an edit is not seen: {now} {problems}")
            if problems or (self.argv[0] not in ("add", "status") and not now.clean):
                raise Broken(f"after the same command again status is not clean: {now} {problems}")
        self._check_leftovers()

    def _check_in_step(self) -> None:
        """Data is as its pointers say, whether or not that is committed."""
        with self.repo() as repo:
            now, problems = status(repo)
        for row in now.paths:
            if row.modified or row.added or row.missing or row.behind:
                raise Broken(f"after the same command again data is not as its pointers say: {row}")
        if problems or now.left_behind or now.conflicts:
            raise Broken(f"after the same command again: {problems} {now.left_behind} {now.conflicts}")

    def check_words(self, run: Ran) -> None:
        """What a run that was not killed has to say.

        Raises:
            Broken: it says something else.
        """
        if run.killed:
            return
        if run.code not in _CODES:
            raise Broken(f"exit code {run.code} is no documented one: {run.said}")
        if "Traceback" in run.said or "ran into a bug" in run.said:
            raise Broken(f"a bug shown to the user: {run.said}")
        if run.code not in (0, _DAMAGE) and "error: " not in run.said:
            raise Broken(f"exit code {run.code} and no error: {run.said}")
        if run.code in (1, 16, 17) and re.search(r"^error: [A-Z][a-z/ ]+$", run.said, re.MULTILINE):
            raise Broken(f"an error that does not say which object: {run.said}")
        if self.argv[0] == "verify" and run.code == _DAMAGE and not self.damaged:
            raise Broken(f"a fault is called damage: {run.said}")

    def _check_success(self, run: Ran) -> None:
        if files_of(self.top) != self.after and not (self.is_hook and run.said.strip()):
            raise Broken(f"success, and not done: {differences(files_of(self.top), self.after)}: {run.said}")

    def _check_files(self) -> None:
        found = files_of(self.top)
        for path in {*found, *self.before, *self.after}:
            if found.get(path) not in (self.before.get(path), self.after.get(path)):
                raise Broken(f"{path} is neither the old file nor the new one")
        if self.got is not None:
            out = os.path.join(self.place, "out")
            wrong = [p for p, x in files_of(out).items() if self.got.get(p) != x]
            if wrong:
                raise Broken(f"{wrong[0]} has its final name and wrong bytes")

    def _check_index(self) -> None:
        """Git never sees data, nor a temporary file."""
        lock = os.path.join(self.top, ".git", "index.lock")
        if os.path.exists(lock):  # git itself was struck; its user removes this
            os.unlink(lock)
        seen = self.git("ls-files", "--others", "--exclude-standard").splitlines()
        known = [p for p in seen if os.path.lexists(os.path.join(self.top, p + ".dvk")) or _TEMPORARY.search(p)]
        if known:
            raise Broken(f"Git sees {known[0]}")

    def check_objects(self, damaged: Collection[str] = ()) -> None:
        """Every pack and page pack at a final name, here and on the remote, is what its name says."""
        for store, holds in ((self.store, self.here), (self.remote, self.there)):
            found = 0
            for kind in ("p", "m"):
                for folder, _, names in os.walk(os.path.join(store, kind)):
                    for name in names:
                        with open(os.path.join(folder, name), "rb") as f:
                            digest = blake3(f.read()).hexdigest()
                        if digest != name and name not in damaged:
                            raise Broken(f"the object {name} in {store} has other content")
                        found += 1
            if holds and not found:
                raise Broken(f"there is no object in {store}")

    def check_versions(self, run: Ran | None) -> None:
        """Every acknowledged version is read back, here without the remote, and from the remote without what is here.

        `run` is the struck run: what it acknowledged counts too.
        """
        here, there = set(self.here), set(self.there)
        if run is None or run.code == 0:
            here |= self.brought
            there |= self.sent
        # What is not trusted is not read, so nothing can come from there.
        self._read_back(here, {**self.environ, "DVK_TRUST_REMOTES": ""}, "the local store")
        empty = os.path.join(self.place, "empty-store")
        self._read_back(there, {**self.environ, "DVK_STORE": empty}, "the remote")
        shutil.rmtree(empty, ignore_errors=True)

    def check_pointers(self) -> None:
        """The data of every pointer in the work tree is here: a pointer is written last."""
        out = os.path.join(self.place, "read-back")
        names = [n.removesuffix(".dvk") for n in os.listdir(self.top) if n.endswith(".dvk")]
        for name in names:
            shutil.rmtree(out, ignore_errors=True)
            os.makedirs(out)
            try:
                with Repo(self.top, environ={**self.environ, "DVK_TRUST_REMOTES": ""}) as repo:
                    failures = get(repo, name, os.path.join(out, name)).failures
            except DvkError as e:
                failures = [e]
            if failures:
                raise Broken(f"a pointer was written and its data is not here: {failures[0]}")
            found = files_of(out)
            for files in (self.before, *self.versions.values()):
                if found == {p: x for p, x in files.items() if p == name or p.startswith(name + "/")}:
                    break
            else:
                raise Broken(f"the pointer of {name} stands for something that never was")
        shutil.rmtree(out, ignore_errors=True)

    def _read_back(self, commits: Collection[str], environ: Mapping[str, str], where: str) -> None:
        out = os.path.join(self.place, "read-back")
        for commit in sorted(commits):
            for path in ("d", "t.csv"):
                shutil.rmtree(out, ignore_errors=True)
                os.makedirs(out)
                try:
                    with Repo(self.top, environ=environ) as repo:
                        failures = get(repo, f"{commit}:{path}", os.path.join(out, path)).failures
                except DvkError as e:
                    failures = [e]
                if failures:
                    raise Broken(f"an acknowledged version is not to be had from {where}: {failures[0]}")
                wanted = {p: x for p, x in self.versions[commit].items() if p == path or p.startswith(path + "/")}
                if files_of(out) != wanted:
                    raise Broken(f"{where} gives wrong bytes: {differences(files_of(out), wanted)}")
        shutil.rmtree(out, ignore_errors=True)

    def _check_leftovers(self) -> None:
        left = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(self.place)
            for name in names
            if _TEMPORARY.fullmatch(name) or re.fullmatch(r"\.[0-9a-f]{32}", name)
        ]
        if len(left) > MAX_LEFTOVERS:
            raise Broken(f"{len(left)} temporary files are left: {left[0]}")


def differences(found: Files, wanted: Files) -> str:
    """In which files two trees differ, in words."""
    wrong = sorted(p for p in {*found, *wanted} if found.get(p) != wanted.get(p))
    return f"{len(wrong)} files are not as they should be: {', '.join(wrong[:3])}"


# ---------------------------------------------------------------- the stages


def environ_of(place: str) -> dict[str, str]:
    """The environment of a user whose home is `place/home`, without this process's Git, dvk and cloud settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "DVK_", "XDG_", "AWS_"))}
    kept["PATH"] = _short(kept.get("PATH", os.defpath))
    git = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    who = {f"GIT_{w}_{x}": y for w in ("AUTHOR", "COMMITTER") for x, y in (("NAME", "A"), ("EMAIL", "a@example"))}
    mine = {"HOME": os.path.join(place, "home"), "DVK_TRUST_REMOTES": f"file://{place}/remote"}
    return {**kept, **git, **who, **mine}


def _short(path: str) -> str:
    """The folders of a search path that hold what stages run; each other one costs every run some milliseconds."""
    programs = [shutil.which(name, path=path) for name in ("python", "git")]
    return os.pathsep.join(dict.fromkeys([*(os.path.dirname(p) for p in programs if p), "/usr/bin", "/bin"]))


def _two_versions(place: str, scale: int) -> Stage:
    """A table and a folder in two committed versions; the first is on the remote."""
    stage = Stage(place, environ=environ_of(place))
    stage.init(f"file://{place}/remote")
    stage.write({"t.csv": table(2000 * scale), **{f"d/{i % 3}/{i}": noise(300 * scale + i, i) for i in range(8)}})
    first = stage.commit("t.csv", "d")
    stage.dvk("push")
    stage.there.add(first)
    stage.write({"t.csv": table(2100 * scale), "d/0/0": b"edited", "d/new": b"new", "d/1/1": None})
    stage.write({"d/9/9": b"in a folder that only this version has"})
    stage.write({"d/n.bin": noise(150_000 * scale, 99)})
    stage.commit("t.csv", "d")
    return stage


def _add(stage: Stage) -> None:
    stage.write({"t.csv": table(2500), "d/0/3": b"third", "d/third": noise(90_000, 3), "third.bin": noise(70_000, 4)})
    stage.write({"d/new": None})
    stage.after = files_of(stage.top)
    stage.argv = ("add", "t.csv", "d", "third.bin")


def _push(stage: Stage) -> None:
    stage.after = files_of(stage.top)
    stage.sent = set(stage.versions)
    stage.argv = ("push",)


def _fresh(stage: Stage) -> None:
    """Make the work tree a fresh clone, with pointers and no data; all versions are on the remote."""
    stage.dvk("push")
    stage.there = set(stage.versions)
    stage.here = set()
    origin = os.path.join(stage.place, "origin")
    subprocess.run(["git", "clone", "-q", "--bare", stage.top, origin], check=True, env=stage.environ)
    shutil.rmtree(stage.top)
    subprocess.run(["git", "clone", "-q", origin, stage.top], check=True, env=stage.environ)


def _pull(stage: Stage) -> None:
    head = stage.git("rev-parse", "HEAD")
    stage.after = stage.versions[head]
    _fresh(stage)
    stage.brought = {head}
    stage.argv = ("pull",)


def _update(stage: Stage) -> None:
    """A clone that has the first version pulls the second."""
    head = stage.git("rev-parse", "HEAD")
    stage.after = stage.versions[head]
    _fresh(stage)
    stage.git("checkout", "-q", "HEAD~1")
    stage.dvk("pull")
    stage.here = {stage.git("rev-parse", "HEAD")}
    stage.brought = {head}
    stage.git("checkout", "-q", "main")
    stage.argv = ("pull",)


def _fetch(stage: Stage) -> None:
    head = stage.git("rev-parse", "HEAD")
    _fresh(stage)
    stage.after = {}
    stage.brought = {head}
    stage.argv = ("fetch",)


def _checkout(stage: Stage) -> None:
    stage.git("checkout", "-q", "HEAD~1")
    stage.after = stage.versions[stage.git("rev-parse", "HEAD")]
    stage.argv = ("checkout",)


def _restore(stage: Stage) -> None:
    stage.after = stage.versions[stage.git("rev-parse", "HEAD~1")]
    stage.argv = ("restore", "--source", "HEAD~1", "t.csv", "d")


def _status(stage: Stage) -> None:
    """It changes nothing but the stat caches, in which nothing wrong may be believed later."""
    stage.write({"d/0/0": b"again"})
    stage.after = files_of(stage.top)
    stage.argv = ("status",)


def _get(stage: Stage) -> None:
    stage.after = files_of(stage.top)
    head = stage.git("rev-parse", "HEAD")
    stage.got = {p[2:]: x for p, x in stage.versions[head].items() if p.startswith("d/")}
    stage.argv = ("get", "HEAD:d", "--force", "-o", os.path.join(stage.place, "out"))


def _remove(stage: Stage) -> None:
    stage.after = {p: x for p, x in files_of(stage.top).items() if not p.startswith("d/1/")}
    stage.argv = ("rm", "d/1")


def _move(stage: Stage) -> None:
    stage.after = {("e" + p[1:] if p.startswith("d/") else p): x for p, x in files_of(stage.top).items()}
    stage.argv = ("mv", "d", "e")


def _remove_whole(stage: Stage) -> None:
    stage.after = {p: x for p, x in files_of(stage.top).items() if not p.startswith("d/")}
    stage.argv = ("rm", "d")


def _move_part(stage: Stage) -> None:
    """The folder that a file alone is in goes with it."""
    stage.after = {p.replace("d/9/9", "d/8"): x for p, x in files_of(stage.top).items()}
    stage.argv = ("mv", "d/9/9", "d/8")


def _gc(stage: Stage) -> None:
    """A version was added and overwritten before anybody committed it; its data is garbage here."""
    stage.write({"t.csv": noise(60_000, 5), "d/garbage": noise(60_000, 6)})
    stage.dvk("add", "t.csv", "d")
    stage.write({"t.csv": table(2300), "d/garbage": None})
    stage.commit("t.csv", "d")
    stage.after = files_of(stage.top)
    stage.argv = ("gc", "--yes", "--young", "0")


def _fold(stage: Stage) -> None:
    """A pack that is mostly garbage and in part needed, so that its rest is copied before it is deleted."""
    stage.write({"d/garbage": noise(300_000, 7), "d/stays": noise(60_000, 8)})
    stage.dvk("add", "d")
    stage.write({"d/garbage": None})
    stage.commit("t.csv", "d")
    stage.after = files_of(stage.top)
    stage.argv = ("gc", "--yes", "--young", "0")


def _shared(stage: Stage) -> None:
    """A `gc` of another repository, which keeps its data in the store of this one."""
    stage.environ["DVK_STORE"] = stage.store
    other = Stage(os.path.join(stage.place, "other"), environ=stage.environ)
    other.init(f"file://{stage.remote}")
    other.write({"t.csv": noise(60_000, 5)})
    other.dvk("add", "t.csv")
    other.write({"t.csv": table(2200, seed=2)})
    other.commit("t.csv")
    stage.after = files_of(stage.top)
    stage.argv = ("-C", other.top, "gc", "--yes", "--young", "0")


def _forgotten(stage: Stage) -> None:
    """The second version was pushed, and no branch leads to it any more."""
    stage.dvk("push")
    first, second = stage.there, set(stage.versions) - stage.there
    stage.git("reset", "-q", "--hard", "HEAD~1")
    stage.git("reflog", "expire", "--expire=now", "--all")
    stage.git("gc", "-q", "--prune=now")
    stage.dvk("checkout")
    for commit in second:
        del stage.versions[commit]
    stage.here, stage.there = set(first), set(first)
    stage.after = files_of(stage.top)


def _import(stage: Stage) -> None:
    """Of a file of this machine, as of any other place but for who reads it."""
    source = os.path.join(stage.place, "source.bin")
    _write_source(source, noise(400_000, 9))
    stage.after = {**files_of(stage.top), "s.bin": content_of(source)}
    stage.argv = ("import", source, "-o", "s.bin", "--force")


def _refresh(stage: Stage) -> None:
    """`update`: what was imported is another file now."""
    _import(stage)
    stage.dvk(*stage.argv)
    _write_source(os.path.join(stage.place, "source.bin"), noise(400_000, 10))
    stage.after = {**files_of(stage.top), "s.bin": content_of(os.path.join(stage.place, "source.bin"))}
    stage.argv = ("update",)


def _resolve(stage: Stage) -> None:
    """Two branches changed the same table and folder; the other one wins."""
    stage.git("checkout", "-q", "-b", "other", "HEAD~1")
    stage.dvk("checkout")
    stage.write({"t.csv": table(2200, seed=1), "d/0/0": b"edited otherwise", "d/other": noise(50_000, 11)})
    other = stage.commit("t.csv", "d")
    stage.git("checkout", "-q", "main")
    stage.dvk("checkout")
    with contextlib.suppress(Broken):  # a conflict
        stage.git("merge", "-q", "other")
    stage.after = stage.versions[other]
    stage.argv = ("resolve", "--theirs")


def _config(stage: Stage) -> None:
    """What it changes is no data, and without it nothing is found any more: settings of the tree and of the clone."""
    stage.after = files_of(stage.top)
    stage.argv = ("config", "remote.origin.max_concurrency", "7")


def _hooks(stage: Stage) -> None:
    stage.after = files_of(stage.top)
    stage.argv = ("hooks", "install")


def _follow(stage: Stage) -> None:
    """The hook after a `git checkout` of the version before."""
    new = stage.git("rev-parse", "HEAD")
    stage.dvk("hooks", "run", "post-checkout", new, new, "1")
    stage.git("checkout", "-q", "HEAD~1")
    old = stage.git("rev-parse", "HEAD")
    stage.after, stage.is_hook = stage.versions[old], True
    stage.argv = ("hooks", "run", "post-checkout", new, old, "1")


def _init(stage: Stage) -> None:
    stage.after = files_of(stage.top)
    stage.argv = ("init",)


def _write_source(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


_AT_ONCE = ("--retention", "0d", "--young", "0d", "--offline", "--i-know")


def _plan(stage: Stage) -> None:
    _forgotten(stage)
    stage.argv = ("gc", "--remote", "origin", "--plan", os.path.join(stage.place, "plan"), *_AT_ONCE)


def _condemn(stage: Stage) -> None:
    _plan(stage)
    stage.dvk(*stage.argv)
    stage.argv = ("gc", "--remote", "origin", "--apply", os.path.join(stage.place, "plan"), *_AT_ONCE)


def _sweep(stage: Stage) -> None:
    _condemn(stage)
    stage.dvk(*stage.argv)
    stage.argv = ("gc", "--remote", "origin", "--sweep", "--grace", "0d", *_AT_ONCE)


def _repair(stage: Stage) -> None:
    """Every second pack here has a wrong bit, and the index is gone; the remote has everything."""
    stage.dvk("push")
    stage.there, stage.here, stage.brought = set(stage.versions), set(), set(stage.versions)
    _damage_packs(stage, stage.store)
    shutil.rmtree(os.path.join(stage.store, "i"))
    stage.after = files_of(stage.top)
    stage.argv = ("repair",)


def _repair_remote(stage: Stage) -> None:
    """Every second pack of the remote has a wrong bit, and its locators are gone; the local store has everything."""
    stage.dvk("push")
    stage.sent = set(stage.versions)
    stage.there = set()
    _damage_packs(stage, stage.remote)
    shutil.rmtree(os.path.join(stage.remote, "l"))
    stage.after = files_of(stage.top)
    stage.argv = ("repair", "--remote", "origin", "--data")


def _damage_packs(stage: Stage, store: str) -> None:
    """Flip a bit in every second pack and page pack of `store`."""
    packs = [os.path.join(f, n) for k in ("p", "m") for f, _, ns in os.walk(os.path.join(store, k)) for n in ns]
    for path in sorted(packs)[::2]:
        os.chmod(path, 0o600)
        with open(path, "r+b") as file:
            file.seek(60)
            byte = file.read(1)
            file.seek(60)
            file.write(bytes([byte[0] ^ 4]))
        stage.damaged.add(os.path.basename(path))


def _verify(stage: Stage) -> None:
    stage.after = files_of(stage.top)
    stage.argv = ("verify", "--data")


STAGES: Mapping[str, Callable[[Stage], None]] = {
    "add": _add,
    "push": _push,
    "pull": _pull,
    "update": _update,
    "fetch": _fetch,
    "checkout": _checkout,
    "restore": _restore,
    "status": _status,
    "get": _get,
    "rm": _remove,
    "mv": _move,
    "rm-whole": _remove_whole,
    "mv-part": _move_part,
    "import": _import,
    "refresh": _refresh,
    "resolve": _resolve,
    "config": _config,
    "hooks": _hooks,
    "follow": _follow,
    "init": _init,
    "gc": _gc,
    "fold": _fold,
    "shared": _shared,
    "plan": _plan,
    "condemn": _condemn,
    "sweep": _sweep,
    "verify": _verify,
    "repair": _repair,
    "repair-remote": _repair_remote,
}
#: verbs that are not repeated word for word: what was removed, moved or condemned is so already, and that is said
ONCE = ("rm", "mv", "gc")
ONCE_CODES = (5, 6)


def build(name: str, place: str, *, scale: int = 1) -> Stage:
    """The stage of that name in the new folder `place`; `scale` makes its files larger."""
    began = time.time()
    stage = _two_versions(place, scale)
    STAGES[name](stage)
    stage.name = name
    # What was written in the same tick as the stat cache is not believed; wait it out, so that runs are alike.
    time.sleep(max(0.0, 0.02 - (time.time() - began)))
    return stage.freeze()
