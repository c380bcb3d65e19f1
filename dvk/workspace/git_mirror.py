"""Another Git repository: what its URL may be, and a bare copy of it without file contents in the user's cache.

To read `v1:models/best.pt` of a repository somewhere else takes a few commits, folders and one pointer of it. So the
copy is made with `--filter=blob:none`: history and names arrive once, contents of files (pointers are some hundred
bytes) when they are asked for. Where a server knows no filters Git fetches everything, which is right and slower.

    url = parse_git_url("git@host:acme/registry.git")
    mirror = Mirror(url, cache, environ)
    mirror.refresh("v1")                       # nothing is asked when "v1" is a whole commit id that is here
    repo = mirror.open()                       # a GitRepo that has no work tree

URLs come from command lines and from pointers that strangers wrote. Schemes are an allow-list (no `ext::`, no `fd::`),
also for what the user's own `insteadOf` rules make of them; nothing starts with a dash; no password is in one, since
it would be committed. Git is never asked to wait for a person unless the caller says that one is there.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from blake3 import blake3
from msgspec import Struct

from dvk.backend.locate import RemoteUrl
from dvk.backend.text import printable, redact
from dvk.errors import DvkError, NotARepository, NotFound, RemoteDenied, RemoteUnreachable, UsageError
from dvk.store.names import show
from dvk.timings import Stage, stage
from dvk.workspace.git import GitRepo
from dvk.workspace.git_objects import CommitId, ProgramObjects, as_commit, check_rev
from dvk.workspace.git_program import Finished, GitProgram, failure, needs_git
from dvk.workspace.places import exclusive

_SCHEMES = ("https", "http", "ssh", "git")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)/(.*)")
_SHORT = re.compile(r"((?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*):(?!//)(.+)")  # git@host:path
_HOST = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?"
)
_MAX_URL = 1024

# What makes the copy independent of templates, hooks and slow servers. Hooks of the user's own are not meant for it.
_OPTIONS = (
    *("-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", "-c", "maintenance.auto=false"),
    *("-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=60", "-c", "submodule.recurse=false"),
)
_LOCK_TIMEOUT_S = 600.0
_FEW = 3  # contents that git may fetch one after the other
_SILENCE_S = 180.0  # of a server that says nothing at all, not even progress

_DENIED = (
    *(b"terminal prompts disabled", b"could not read Username", b"could not read Password"),
    *(b"Authentication failed", b"Permission denied", b"Host key verification failed", b"error: 403"),
)
_NO_SUCH = (b"not appear to be a git repo", b"epository not found", b"not found", b"does not exist", b"not exported")
_BUSY_LOCK = b".lock': File exists"


class GitUrl(Struct, frozen=True):
    """A checked URL. `str()` gives what git gets, which for USER@HOST:PATH is another place than its ssh:// form."""

    text: str
    place: RemoteUrl  #: what trust is remembered for

    def __str__(self) -> str:
        return self.text


def parse_git_url(text: str) -> GitUrl:
    """Check the URL of a Git repository elsewhere: SCHEME://HOST/PATH or USER@HOST:PATH.

    >>> str(parse_git_url("git@host.org:acme/data.git").place)
    'ssh://git@host.org/acme/data.git'

    Raises:
        UsageError: anything else, saying what is wrong.
    """
    if not text or not text.isprintable() or len(text) > _MAX_URL or not text.isascii():
        raise _refuse(text, "it is empty, too long or has characters that belong into no URL")
    if text.startswith("-"):
        raise _refuse(text, "it starts with a dash, like an option")
    if re.match(r"[A-Za-z0-9+.-]+::", text):
        raise _refuse(text, "helpers of Git (`NAME::`) run programs and are not allowed")
    match = _URL.fullmatch(text)
    if match is None:
        short = _SHORT.fullmatch(text)
        if short is None:
            raise _refuse(text, "it is neither SCHEME://HOST/PATH nor USER@HOST:PATH nor a folder here")
        match = _URL.fullmatch(f"ssh://{short[1]}/{short[2].lstrip('/')}")
        assert match is not None
    scheme, authority, path = match[1].lower(), match[2], match[3].rstrip("/")
    if scheme not in _SCHEMES:
        raise _refuse(text, f"the scheme {scheme!r} is not allowed", hint=f"one of {', '.join(_SCHEMES)}, or a folder")
    host = _HOST.fullmatch(authority)
    if host is None or (host["user"] and scheme != "ssh"):
        what = "a user or password does not belong into it" if "@" in authority else "its host makes no sense"
        raise _refuse(text, what, hint="a credential helper of Git keeps passwords (`git help credentials`)")
    if not path or any(part in ("", ".", "..") for part in path.split("/")) or path.startswith("-"):
        raise _refuse(text, "its path is empty, starts with a dash, or has an empty, `.` or `..` part")
    if "?" in path or "#" in path:
        raise _refuse(text, "options after `?` or `#` are not allowed")
    return GitUrl(text.rstrip("/"), RemoteUrl(scheme, authority, path))


def looks_like_git_url(text: str) -> bool:
    """Whether `text` is to be read as a URL, not as a folder of this machine."""
    return "://" in text or "::" in text or bool(re.match(r"[^/]*:", text))


class _Objects(ProgramObjects):
    """Objects of a copy without contents: those that are asked for together are brought together."""

    def __init__(self, program: GitProgram, cwd: bytes, bring: Callable[[Sequence[str]], None] | None) -> None:
        super().__init__(program, cwd)
        self._bring = bring

    def blobs(self, oids: Iterable[str], *, max_bytes: int) -> Iterator[bytes]:
        wanted = list(oids)
        if self._bring is not None and len(wanted) > _FEW:
            self._bring(sorted(set(wanted)))
        return super().blobs(wanted, max_bytes=max_bytes)


def open_bare(
    git_dir: bytes,
    environ: Mapping[str, str],
    *,
    outside: bytes | None = None,
    bring: Callable[[Sequence[str]], None] | None = None,
) -> GitRepo:
    """A Git repository without a work tree, for reading commits. Its `top` is its own folder.

    Args:
        bring: called with the ids of files that are about to be read, where some may be missing.

    Raises:
        NotFound: there is no git program. NotARepository: there is no repository there.
        Refused: it belongs to another user.
    """
    program = _program(environ, outside)
    done = program.run(["rev-parse", "--show-object-format"], cwd=git_dir)
    if not done.ok:
        if b"not a git repository" in done.err:
            raise NotARepository("there is no Git repository", subject=show(git_dir))
        raise failure(done, git_dir)
    kind = "sha256" if done.out.strip() == b"sha256" else "sha1"
    bound = GitProgram(program.path, {**program.environ, "GIT_DIR": os.fsdecode(git_dir)})
    return GitRepo(
        git_dir, git_dir, git_dir, program=bound, objects=_Objects(bound, git_dir, bring), object_format=kind
    )


class Mirror:
    """The copy of one repository. Several processes may refresh it at once: one does, the others wait.

    Args:
        cache: the user's cache folder; the copy lies below it, by its URL.
        interactive: whether a person is at the terminal whom git and ssh may ask.
        outside: no program in this folder is run.
    """

    def __init__(
        self,
        url: GitUrl,
        cache: bytes,
        environ: Mapping[str, str],
        *,
        interactive: bool = False,
        outside: bytes | None = None,
    ) -> None:
        self.url = url
        self.folder = mirror_folder(cache, str(url))
        self.git_dir = os.path.join(self.folder, b"git")
        self._interactive, self._outside = interactive, outside
        asks = {"GIT_TERMINAL_PROMPT": "1"} if interactive else {"SSH_ASKPASS_REQUIRE": "never"}
        self._environ = {**environ, "GIT_ALLOW_PROTOCOL": _allowed(environ)}
        program = _program(self._environ, outside)
        self._program = GitProgram(program.path, {**program.environ, **asks})

    def open(self) -> GitRepo:
        """The copy as a repository to read from. `refresh` makes it."""
        return open_bare(self.git_dir, self._environ, outside=self._outside, bring=self.bring)

    def bring(self, oids: Sequence[str]) -> None:
        """Fetch contents of files in one request, where git would ask for one after the other; it need not work."""
        self._fetch(["--no-tags"], oids)

    def refresh(self, rev: str) -> None:
        """Bring branches and tags up to date, unless `rev` is the whole id of a commit that is here.

        `HEAD` is what the server's is.

        Raises:
            RemoteUnreachable, RemoteDenied, NotFound: the server does not answer, wants a sign-in, has no such
            repository. UsageError: `rev` can be no revision.
        """
        check_rev(rev)
        wanted = as_commit(rev)
        with exclusive(os.path.join(self.folder, b"lock"), timeout_s=_LOCK_TIMEOUT_S):
            if not os.path.isfile(os.path.join(self.git_dir, b"dvk-complete")):
                self._make()
            elif wanted is not None and self._has(wanted):
                return
            everything = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
            done = self._fetch(["--prune", "--no-tags"], ["+HEAD:refs/dvk/head", *everything])
            if not done.ok and b"couldn't find remote ref HEAD" in done.err:
                done = self._fetch(["--prune", "--no-tags"], everything)  # its HEAD is a branch without a commit
            if not done.ok:
                raise self._failure(done)
            head = self._git("rev-parse", "--verify", "--quiet", "refs/dvk/head^{commit}")
            if head.ok:
                self._git("update-ref", "--no-deref", "HEAD", head.out.decode("ascii").strip())
            with open(os.path.join(self.git_dir, b"dvk-complete"), "wb"):
                pass  # it is whole from here on
            if wanted is not None and not self._has(wanted):
                self._fetch([], [wanted])  # a commit that is on no branch: most servers give it, and else it is missing

    def _make(self) -> None:
        os.makedirs(self.git_dir, mode=0o700, exist_ok=True)
        done = self._git("init", "--bare", "--quiet", "--template=", ".")
        for key, value in (
            ("core.repositoryFormatVersion", "1"),
            ("extensions.partialClone", "origin"),
            ("remote.origin.url", str(self.url)),
            ("remote.origin.promisor", "true"),
            ("remote.origin.partialCloneFilter", "blob:none"),
        ):
            done = self._git("config", key, value) if done.ok else done
        if not done.ok:
            raise failure(done, self.git_dir)

    def _has(self, commit: CommitId) -> bool:
        # Not `cat-file`, which would fetch what is missing.
        return self._git("rev-list", "--max-count=1", "--no-walk", "--exclude-promisor-objects", commit).ok

    def _fetch(self, options: Sequence[str], refs: Sequence[str]) -> Finished:
        fixed = ("--progress", "--force", "--filter=blob:none", "--no-write-fetch-head", "--no-recurse-submodules")
        return self._git("fetch", *fixed, *options, "--end-of-options", "origin", *refs)

    def _git(self, *arguments: str) -> Finished:
        """Run git to its end, or end it when we are told to stop."""
        with (
            stage(Stage.GIT),
            subprocess.Popen(
                [self._program.path, *_OPTIONS, *arguments],
                cwd=self.git_dir,
                env={**self._program.environ, "GIT_DIR": os.fsdecode(self.git_dir)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Without a terminal of its own nothing below it can ask, whatever it is configured to.
                start_new_session=not self._interactive,
            ) as process,
        ):
            try:
                out, err = self._listen(process)
            except BaseException:
                if self._interactive:
                    process.kill()
                else:  # with ssh and whatever else it started
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        return Finished(process.returncode, out, err)

    def _listen(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
        """What git says until it ends.

        Raises:
            RemoteUnreachable: it says nothing for so long that nothing will come.
        """
        assert process.stdout and process.stderr
        said: dict[int, list[bytes]] = {process.stdout.fileno(): [], process.stderr.fileno(): []}
        with selectors.DefaultSelector() as open_pipes:
            for pipe in said:
                open_pipes.register(pipe, selectors.EVENT_READ)
            while open_pipes.get_map():
                ready = open_pipes.select(_SILENCE_S)
                if not ready:
                    raise RemoteUnreachable(
                        f"the Git server said nothing for {_SILENCE_S:.0f} s", subject=str(self.url), transient=False
                    )
                for key, _ in ready:
                    data = os.read(key.fd, 65_536)
                    if data:
                        said[key.fd].append(data)
                    else:
                        open_pipes.unregister(key.fd)
        out, err = (b"".join(parts) for parts in said.values())
        process.wait()
        return out, err

    def _failure(self, done: Finished) -> DvkError:
        """What a fetch that did not work means to the user."""
        said, subject = _last_line(done.err), str(self.url)
        if any(word in done.err for word in _DENIED):
            return RemoteDenied(
                f"the Git server wants a sign-in that Git has not got ({said})",
                subject=subject,
                hint=f"try `git ls-remote {subject}` by hand; a credential helper or an ssh agent keeps what it asks",
            )
        if any(word in done.err for word in _NO_SUCH) and b"resolve host" not in done.err:
            return NotFound(f"there is no such Git repository, or not for you ({said})", subject=subject)
        if _BUSY_LOCK in done.err or b"No space left" in done.err:
            return failure(done, self.git_dir)
        return RemoteUnreachable(
            f"the Git repository cannot be read ({said})",
            subject=subject,
            hint=f"`git ls-remote {subject}` shows whether Git reaches it",
            transient=False,
        )


def mirror_folder(cache: bytes, url: str) -> bytes:
    """Where the copy of the repository at `url`, and what dvk knows about it, is kept."""
    return os.path.join(cache, b"mirrors", blake3(url.encode()).hexdigest()[:32].encode())


def _program(environ: Mapping[str, str], outside: bytes | None) -> GitProgram:
    program = GitProgram.find(environ, outside=outside)
    if program is None:
        raise needs_git("another repository")
    return program


def _allowed(environ: Mapping[str, str]) -> str:
    """The protocols that git may speak: ours, or those of ours that the user allows."""
    theirs = environ.get("GIT_ALLOW_PROTOCOL")
    return ":".join(s for s in _SCHEMES if theirs is None or s in theirs.split(":"))


def _last_line(err: bytes) -> str:
    """What git said that tells most: its first `fatal:` or `error:` line, else what the server said last."""
    lines = [line.strip() for line in err.decode("utf-8", "replace").splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR:", "ssh:"))]
    chosen = (telling or lines[-1:] or ["git gave no reason"])[0]
    return redact(re.sub(r"^(fatal|error|remote|ERROR): *", "", chosen))


def _refuse(text: str, why: str, *, hint: str = "") -> UsageError:
    return UsageError(f"not the URL of a Git repository: {why}", subject=redact(printable(text)), hint=hint)
