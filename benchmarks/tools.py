"""The tools and what the verbs are called in each of them.

    tool = Dvk.find(peers)             # None and a reason when it is not on this machine
    tool.prepare(place)                # a fresh Git repository, set up as the tool's manual says
    tool.add(place, version=0)         # a Command, to be measured by the caller
    tool.keep(place, version=0)        # what makes the version one to come back to; not measured

A verb that a tool does not have is None, so a gap in the table is the tool's and not ours. Each tool runs with the
settings it comes with; differences that matter are told in `docs/benchmarks.md`.
"""

# ruff: noqa: ARG002, ARG003 - signatures are those of the class above

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.measure import Command, StepFailed, quietly

XET_CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "xet_child.py")
BUCKET = "bench"


@dataclass(frozen=True)
class Place:
    """Where one tool works on one item in one round; everything below `root` is removed afterwards."""

    root: str
    path: str  #: what the item is called in the repository
    env: dict[str, str] = field(default_factory=dict)

    @property
    def repo(self) -> str:
        return os.path.join(self.root, "repo")

    @property
    def target(self) -> str:
        return os.path.join(self.repo, self.path)

    @property
    def clone(self) -> str:
        return os.path.join(self.root, "clone")

    @property
    def store(self) -> str:
        """Where tools put their store that do not keep it in the repository."""
        return os.path.join(self.root, "store")

    @property
    def remote(self) -> str:
        """The local disk remote."""
        return os.path.join(self.root, "remote")

    @property
    def scratch(self) -> str:
        return os.path.join(self.root, "scratch")


def new_place(root: str, path: str, *, extra_env: dict[str, str]) -> Place:
    """An empty place with a home of its own, so that no setting of this machine's user counts."""
    home = os.path.join(root, "home")
    for folder in (root, home, os.path.join(root, "scratch"), os.path.join(root, "repo")):
        os.mkdir(folder)
    with open(os.path.join(home, ".gitconfig"), "w") as f:
        f.write("[user]\n\tname = bench\n\temail = bench@localhost\n[init]\n\tdefaultBranch = main\n")
        f.write("[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n[advice]\n\tdetachedHead = false\n")
        f.write('[protocol "file"]\n\tallow = always\n')
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": home,
        "LANG": "C.UTF-8",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": os.path.join(root, "dvc-site"),
        "RESTIC_PASSWORD": "x",
        "RESTIC_CACHE_DIR": os.path.join(root, "restic-cache"),
        "HF_XET_CACHE": os.path.join(root, "xet-cache"),
        **extra_env,
    }
    return Place(root, path, env)


def quietly_in(place: Place, *argv: str) -> None:
    """Run a command in the repository of a place, not measured."""
    quietly(Command(argv, place.repo, place.env), scratch=place.scratch)


@dataclass(frozen=True)
class Missing:
    """A tool that is not there, and what would bring it."""

    why: str


class Tool(ABC):
    """One tool, found on this machine."""

    name: str
    title: str
    #: going back leaves files of the newer version behind, as the tool's users have to expect
    leaves_extra = False
    #: it can talk to S3 and to a folder
    remotes: tuple[str, ...] = ()

    def __init__(self, program: tuple[str, ...], version: str) -> None:
        self.program = program
        self.version = version

    @classmethod
    @abstractmethod
    def find(cls, peers: str) -> tuple[str, ...] | Missing:
        """The program, with the environment in `peers` before the PATH."""

    @classmethod
    def version_command(cls, program: tuple[str, ...]) -> tuple[str, ...]:
        return (*program, "--version")

    def command(self, place: Place, *arguments: str, cwd: str = "") -> Command:
        return Command((*self.program, *arguments), cwd or place.repo, place.env)

    def shell(self, place: Place, text: str, *, cwd: str = "") -> Command:
        return Command(("sh", "-c", text), cwd or place.repo, place.env)

    def git(self, place: Place, *arguments: str, cwd: str = "") -> None:
        """Run git, not measured."""
        quietly(Command(("git", *arguments), cwd or place.repo, place.env), scratch=place.scratch)

    def run(self, command: Command, place: Place) -> str:
        return quietly(command, scratch=place.scratch)

    def prepare(self, place: Place) -> None:
        """Make the repository in `place`. Not measured."""
        self.git(place, "init", "-q")

    @abstractmethod
    def add(self, place: Place, version: int) -> Command:
        """Take the item, as it is now, into the store."""

    def keep(self, place: Place, version: int) -> None:
        """Commit what `add` left. Not measured."""
        self.git(place, "add", "-A")
        self.git(place, "commit", "-q", "-m", f"version {version}")
        self.git(place, "tag", f"v{version}")

    def status(self, place: Place) -> Command | None:
        """Say what changed."""
        return None

    @abstractmethod
    def switch(self, place: Place, version: int) -> Command | None:
        """Bring the item to another version that was kept; the whole of what a user types. None: it takes too long."""

    @abstractmethod
    def store_folders(self, place: Place) -> tuple[str, ...]:
        """Where the bytes lie that `add` stores."""

    def add_remote(self, place: Place, name: str, url: str, endpoint: str) -> None:  # noqa: B027
        """Make a remote known, `name` being local or s3. Not measured."""

    def push(self, place: Place, name: str) -> Command | None:
        """Send what was kept to a remote."""
        return None

    def clone(self, place: Place, name: str) -> None:
        """Clone the repository without the data. Not measured."""
        self.git(place, "clone", "-q", place.repo, place.clone, cwd=place.root)
        self.git(place, "checkout", "-q", "main", cwd=place.clone)

    def pull(self, place: Place, name: str) -> Command | None:
        """Bring the data of the clone's HEAD."""
        return None

    def start(self, place: Place) -> Command | None:
        """The smallest thing the program does."""
        return Command(self.version_command(self.program), place.repo, place.env)


def _program(name: str, peers: str, why: str) -> tuple[str, ...] | Missing:
    found = shutil.which(os.path.join(peers, "bin", name)) or shutil.which(name)
    return (found,) if found else Missing(why)


class Dvk(Tool):
    name, title = "dvk", "dvk"
    remotes = ("local", "s3")

    @classmethod
    def find(cls, peers: str) -> tuple[str, ...] | Missing:
        # The one beside this Python: what is being worked on, not what else is installed.
        beside = os.path.join(os.path.dirname(sys.executable), "dvk")
        return (beside,) if os.access(beside, os.X_OK) else (sys.executable, "-m", "dvk")

    def prepare(self, place: Place) -> None:
        super().prepare(place)
        self.run(self.command(place, "init"), place)

    def add(self, place: Place, version: int) -> Command:
        return self.command(place, "--json", "-q", "add", place.path)

    def status(self, place: Place) -> Command | None:
        return self.command(place, "status")

    def switch(self, place: Place, version: int) -> Command:
        return Command(("git", "checkout", "-q", f"v{version}"), place.repo, place.env)  # its hook brings the data

    def store_folders(self, place: Place) -> tuple[str, ...]:
        return (os.path.join(place.repo, ".git", "dvk"),)

    def add_remote(self, place: Place, name: str, url: str, endpoint: str) -> None:
        self.run(self.command(place, "remote", "add", name, url), place)

    def push(self, place: Place, name: str) -> Command | None:
        return self.command(place, "--json", "-q", "push", "--remote", name)

    def pull(self, place: Place, name: str) -> Command | None:
        return self.command(place, "--json", "-q", "pull", "--remote", name, cwd=place.clone)


def with_dvk(work: str, name: str, do: Callable[[str, tuple[str, ...]], int], *, say: Callable[[str], None]) -> int:
    """What `do` returns, called with a folder of its own below `work`, gone afterwards, and the program.

    1 when there is no program, or when a step of it failed; which one and why is said.
    """
    work = os.path.abspath(work)
    os.makedirs(work, exist_ok=True)
    program = Dvk.find(work)
    if isinstance(program, Missing):
        say(program.why)
        return 1
    folder = tempfile.mkdtemp(prefix=f"{name}-", dir=work)
    try:
        return do(folder, program)
    except StepFailed as problem:
        say(str(problem))
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Dvc(Tool):
    name, title = "dvc", "DVC"
    remotes = ("local", "s3")

    @classmethod
    def find(cls, peers: str) -> tuple[str, ...] | Missing:
        return _program("dvc", peers, "python -m benchmarks peers")

    def prepare(self, place: Place) -> None:
        super().prepare(place)
        self.run(self.command(place, "init", "-q"), place)
        self.run(self.command(place, "config", "core.analytics", "false"), place)

    def add(self, place: Place, version: int) -> Command:
        return self.command(place, "add", place.path)

    def status(self, place: Place) -> Command | None:
        return self.command(place, "status")

    def switch(self, place: Place, version: int) -> Command:
        return self.shell(place, f"git checkout -q v{version} && {shlex.join(self.program)} checkout --force")

    def store_folders(self, place: Place) -> tuple[str, ...]:
        return (os.path.join(place.repo, ".dvc", "cache"),)

    def add_remote(self, place: Place, name: str, url: str, endpoint: str) -> None:
        self.run(self.command(place, "remote", "add", "-q", name, url), place)
        if endpoint:
            self.run(self.command(place, "remote", "modify", name, "endpointurl", endpoint), place)

    def push(self, place: Place, name: str) -> Command | None:
        return self.command(place, "push", "-r", name)

    def pull(self, place: Place, name: str) -> Command | None:
        return self.command(place, "pull", "-r", name, cwd=place.clone)


class Lfs(Tool):
    name, title = "lfs", "Git LFS"
    remotes = ("local",)  # to S3 only through a server of somebody's

    @classmethod
    def find(cls, peers: str) -> tuple[str, ...] | Missing:
        found = _program("git-lfs", peers, "the package git-lfs")
        return found if isinstance(found, Missing) else ("git", "lfs")

    @classmethod
    def version_command(cls, program: tuple[str, ...]) -> tuple[str, ...]:
        return ("git", "lfs", "version")

    def prepare(self, place: Place) -> None:
        super().prepare(place)
        self.run(self.command(place, "install", "--local"), place)
        with open(os.path.join(place.repo, ".gitattributes"), "w") as f:  # what `git lfs track` writes
            for pattern in (place.path, f"{place.path}/**"):
                f.write(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n")

    def add(self, place: Place, version: int) -> Command:
        return Command(("git", "add", "-A", place.path), place.repo, place.env)

    def status(self, place: Place) -> Command | None:
        return Command(("git", "status", "--porcelain"), place.repo, place.env)

    def switch(self, place: Place, version: int) -> Command:
        return Command(("git", "checkout", "-q", f"v{version}"), place.repo, place.env)

    def store_folders(self, place: Place) -> tuple[str, ...]:
        return (os.path.join(place.repo, ".git", "lfs"),)

    def add_remote(self, place: Place, name: str, url: str, endpoint: str) -> None:
        self.git(place, "init", "-q", "--bare", url, cwd=place.root)
        self.git(place, "remote", "add", name, f"file://{url}")

    def push(self, place: Place, name: str) -> Command | None:
        return Command(("git", "push", "-q", name, "main"), place.repo, place.env)

    def clone(self, place: Place, name: str) -> None:
        skip = Place(place.root, place.path, {**place.env, "GIT_LFS_SKIP_SMUDGE": "1"})
        self.git(skip, "clone", "-q", f"file://{place.remote}", place.clone, cwd=place.root)
        self.git(place, "lfs", "install", "--local", cwd=place.clone)

    def pull(self, place: Place, name: str) -> Command | None:
        return self.command(place, "pull", cwd=place.clone)


class Restic(Tool):
    name, title = "restic", "restic"
    leaves_extra = True

    @classmethod
    def find(cls, peers: str) -> tuple[str, ...] | Missing:
        return _program("restic", peers, "the package restic")

    @classmethod
    def version_command(cls, program: tuple[str, ...]) -> tuple[str, ...]:
        return (*program, "version")

    def prepare(self, place: Place) -> None:
        self.run(self.command(place, "-r", place.store, "init", "-q"), place)

    def add(self, place: Place, version: int) -> Command:
        return self.command(place, "-r", place.store, "backup", "-q", "--tag", f"v{version}", place.path)

    def keep(self, place: Place, version: int) -> None:
        """A snapshot is kept already."""

    def switch(self, place: Place, version: int) -> Command:
        tag = f"v{version}"
        return self.command(place, "-r", place.store, "restore", "-q", "--tag", tag, "--target", place.repo, "latest")

    def store_folders(self, place: Place) -> tuple[str, ...]:
        return (place.store,)


#: More are not restored: 50,000 of them took 180 s, since its local server is asked file by file.
_XET_FILES = 10_000


class Xet(Tool):
    name, title = "xet", "Xet"
    leaves_extra = True

    @classmethod
    def find(cls, peers: str) -> tuple[str, ...] | Missing:
        for python in (os.path.join(peers, "bin", "python"), sys.executable):
            if os.path.exists(python):
                try:
                    env = {"PATH": os.defpath}
                    quietly(Command((python, "-c", "import hf_xet"), peers, env), scratch=peers)
                except (StepFailed, OSError):
                    continue
                return (python, XET_CHILD)
        return Missing("python -m benchmarks peers")

    def add(self, place: Place, version: int) -> Command:
        os.makedirs(place.store, exist_ok=True)
        return self.command(place, "add", place.store, self._kept(place, version), place.path)

    def keep(self, place: Place, version: int) -> None:
        """`add` wrote the list of the version's files already."""

    def switch(self, place: Place, version: int) -> Command:
        kept = self._kept(place, version)
        with open(kept, encoding="utf-8") as file:
            if len(json.load(file)) > _XET_FILES:
                return None
        return self.command(place, "restore", place.store, kept, place.repo)

    def store_folders(self, place: Place) -> tuple[str, ...]:
        # Shards and the local server's own database, of a fixed megabyte, are left out: only its data counts.
        return (os.path.join(place.store, "xet", "xorbs", "xorbs"),)

    def _kept(self, place: Place, version: int) -> str:
        return os.path.join(place.root, f"xet-v{version}.json")


class Cp(Tool):
    name, title = "cp", "cp + sync"
    remotes = ("local",)

    @classmethod
    def find(cls, peers: str) -> tuple[str, ...] | Missing:
        return ("cp",)

    def prepare(self, place: Place) -> None:
        os.mkdir(place.store)

    def add(self, place: Place, version: int) -> Command:
        copy = os.path.join(place.store, f"v{version}")
        return self.shell(place, f"cp -R {shlex.quote(place.path)} {shlex.quote(copy)} && sync")

    def keep(self, place: Place, version: int) -> None:
        """A copy is kept already."""

    def switch(self, place: Place, version: int) -> Command:
        copy, path = os.path.join(place.store, f"v{version}"), shlex.quote(place.path)
        return self.shell(place, f"rm -rf {path} && cp -R {shlex.quote(copy)} {path}")

    def store_folders(self, place: Place) -> tuple[str, ...]:
        return (place.store,)

    def add_remote(self, place: Place, name: str, url: str, endpoint: str) -> None:
        os.mkdir(url)

    def push(self, place: Place, name: str) -> Command | None:
        new = shlex.quote(os.path.join(place.remote, str(len(os.listdir(place.remote)))))
        return self.shell(place, f"mkdir {new} && cp -R {shlex.quote(place.path)} {new}/ && sync")

    def clone(self, place: Place, name: str) -> None:
        os.mkdir(place.clone)

    def pull(self, place: Place, name: str) -> Command | None:
        newest = os.path.join(place.remote, str(len(os.listdir(place.remote)) - 1))
        return self.shell(place, f"cp -R {shlex.quote(newest)}/. .", cwd=place.clone)

    def start(self, place: Place) -> Command | None:
        return None


TOOLS: tuple[type[Tool], ...] = (Dvk, Dvc, Lfs, Restic, Xet, Cp)


def find_tools(names: tuple[str, ...] | None, *, peers: str) -> tuple[list[Tool], dict[str, str]]:
    """dvk and those of the named peers (None: all) that are here, and for each that is not what would bring it."""
    os.makedirs(peers, exist_ok=True)
    here: list[Tool] = []
    missing: dict[str, str] = {}
    for kind in TOOLS:
        if kind is not Dvk and names is not None and kind.name not in names:
            continue
        program = kind.find(peers)
        if isinstance(program, Missing):
            missing[kind.name] = program.why
            continue
        env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": peers, "LANG": "C.UTF-8"}
        try:
            said = quietly(Command(kind.version_command(program), peers, env), scratch=peers)
        except StepFailed as problem:
            missing[kind.name] = str(problem)
            continue
        here.append(kind(program, said.strip().splitlines()[0]))
    return here, missing
