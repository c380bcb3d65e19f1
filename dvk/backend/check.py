"""Whether a medium keeps the contract: try everything that dvk relies on and name what is wrong.

Problem: servers that call themselves S3 answer ranges short, list yesterday's objects, store the framing of an upload
inside of the object or say 200 and keep nothing. Each of these has cost somebody data, so it is found before the data
is there.

    report = check(backend)
    report.fatal                       # (Finding("stale-list", ...),): not fit to hold data
    report.weak                        # (Finding("create-only", ...),): works, with less comfort

Choice: the probes go through `Backend` itself, so that what is judged is what dvk will see, retries and checks of our
own included. `check` makes objects of its own under `check/` and removes them. `check_light` is for the first push: it
needs no right to delete, and its one object stays. Findings have stable names (docs/remotes.md).
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from msgspec import Struct, field

from dvk.backend.contract import Backend, KeyExists, KeyMissing, ShortAnswer
from dvk.errors import Corrupt, DvkError, FormatError, RemoteDenied, RemoteError, RemoteUnreachable, StorageError

PREFIX = "check/"
LIGHT_KEY = "check/first-push"
_LIGHT_BYTES = 70_001
_LARGE_BYTES = (8 << 20) + 1
_MULTIPART_BYTES = (100 << 20) + 1  # s3fs sends larger objects in parts
_MANY = 1_001
_RACERS = 8
_FRAMING = re.compile(rb"[0-9a-fA-F]{1,8}(;[^\r\n]{0,200})?\r\n")  # of aws-chunked bodies
_HINTS = {
    "short-answer": "a proxy between may be cutting answers; try without it, else this server cannot be used",
    "stored-framing": "set the remote's checksum to when_required, then check again",
    "stale-list": "this store shows the past; choose one with consistent listings (Amazon S3 has had them since 2020)",
    "stale-read": "this store shows the past; choose one that is consistent after a write",
}


class Finding(Struct, frozen=True):
    """One misbehaviour. `name` is stable and explained in docs/remotes.md."""

    name: str
    problem: str
    hint: str = ""
    fatal: bool = True  #: data would not be safe; else dvk works, and something is less comfortable


class Step(Struct):
    """One thing that was tried."""

    what: str
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    skipped: str = ""  #: why it was not tried


class Report(Struct, frozen=True):
    """What a check found."""

    steps: tuple[Step, ...]
    left_over: int = 0  #: probe objects that could not be removed

    @property
    def fatal(self) -> tuple[Finding, ...]:
        """What makes the medium unfit."""
        return tuple(f for s in self.steps for f in s.findings if f.fatal)

    @property
    def weak(self) -> tuple[Finding, ...]:
        """What dvk can live with."""
        return tuple(f for s in self.steps for f in s.findings if not f.fatal)


class Misbehaves(RemoteError):
    """The medium failed `check_light`; `finding` says how."""

    def __init__(self, finding: Finding, *, subject: str) -> None:
        hint = finding.hint or "`dvk remote check` looks closer"
        super().__init__(f"this remote cannot be trusted with data ({finding.name}): {finding.problem}", hint=hint)
        self.subject = subject
        self.finding = finding


def check(
    backend: Backend,
    *,
    readable: str = "dvk.json",
    thorough: bool = False,
    patience_s: float = 3.0,
    on_step: Callable[[Step], None] = lambda _step: None,
) -> Report:
    """Try everything. Writes, lists and deletes objects of its own under `check/`, nothing else.

    Args:
        readable: an object that is there, for those who may only read.
        thorough: also an object above 100 MiB and more than 1,000 keys.
        patience_s: how long to watch whether something wrong turns right, to tell "late" from "never".
        on_step: hears of each step as it ends.

    Raises:
        RemoteUnreachable: there was no answer, so nothing can be said.
        RemoteDenied, StorageError, NotFound: not even one object can be written, or there is no such place.
    """
    checker = _Checker(backend, patience_s, on_step)
    if not backend.capabilities.writable:
        checker.reading(readable)
        return Report(tuple(checker.steps))
    try:
        checker.objects()
    except RemoteDenied as e:
        if backend.stat(readable) is None:
            raise
        problem = f"these credentials may not write ({e.message})"
        checker.steps.append(Step("writing", findings=[Finding("no-write", problem, fatal=False)]))
        checker.reading(readable)
        return Report(tuple(checker.steps))
    try:
        checker.large()
        checker.missing()
        checker.listing()
        checker.create_only()
        if thorough:
            checker.multipart()
            checker.many()
        checker.deleting()
    finally:
        left_over = checker.clean_up()
    return Report(tuple(checker.steps), left_over)


def check_light(backend: Backend, *, patience_s: float = 3.0) -> None:
    """Refuse a medium that does not give back what it was given. One object, under a fixed key, that stays.

    Raises:
        Misbehaves: naming how. Others as `check`.
    """
    checker = _Checker(backend, patience_s, lambda _step: None)
    checker.light()
    for finding in Report(tuple(checker.steps)).fatal:
        raise Misbehaves(finding, subject=backend.name)


class _Wrong(Exception):
    """A probe ended early with a finding."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.name)
        self.finding = finding


class _Checker:
    """Runs the probes; each method is one step of the report."""

    def __init__(self, backend: Backend, patience_s: float, on_step: Callable[[Step], None]) -> None:
        self.backend, self.steps = backend, list[Step]()
        self._patience_s, self._on_step = patience_s, on_step
        self._folder = f"{PREFIX}{secrets.token_hex(8)}"
        self._lock = threading.Lock()
        self._made: set[str] = set()
        self._may_delete = True

    # ------------------------------------------------------------ steps

    def objects(self) -> None:
        """Small objects come back as they were sent."""
        # Whether there is a place to check at all the first write says, so its error is the answer.
        first = f"{self._folder}/first"
        self._write(first, _pattern(1000))
        with self._step("small objects: write, read, ranges"):
            self._same(first, _pattern(1000))
            for size in (0, 1, _LIGHT_BYTES):
                self._round_trip(f"size-{size}", size)

    def large(self) -> None:
        """An object of 8 MiB, and ranges of it."""
        with self._step("an object of 8 MiB and ranges of it"):
            self._round_trip("large", _LARGE_BYTES)

    def light(self) -> None:
        """What `check_light` does."""
        data = _pattern(_LIGHT_BYTES)
        self.backend.put(LIGHT_KEY, [data])
        with self._step("one object", denied_too=True):
            self._same(LIGHT_KEY, data)
            self._ranges(LIGHT_KEY, data)
            self._listed([LIGHT_KEY], LIGHT_KEY)

    def missing(self) -> None:
        """An object that does not exist is said to be missing."""
        with self._step("objects that do not exist"):
            key = f"{self._folder}/none"
            try:
                if self.backend.stat(key) is not None:
                    raise _Wrong(Finding("invents-objects", "an object is there that nobody wrote"))
                self.backend.get(key, max_bytes=100)
            except KeyMissing:
                return
            except RemoteDenied as e:
                raise _Wrong(
                    Finding(
                        "missing-is-denied",
                        "the answer for an object that does not exist is that it is forbidden",
                        "give these credentials the right to list the bucket; without it every question about a new "
                        f"object looks like a wrong key ({e.message})",
                    )
                ) from e
            raise _Wrong(Finding("invents-objects", "an object can be read that nobody wrote"))

    def listing(self) -> None:
        """What was written is listed at once, under its own name."""
        with self._step("a listing shows what was just written"):
            keys = [f"{self._folder}/list/{name}" for name in ("plain", "a.b_c-d.0", "deep/er/x")]
            for key in keys:
                self._write(key, b"listed")
            self._listed(keys, f"{self._folder}/list/")

    def create_only(self) -> None:
        """Of several that create an object at once, one wins."""
        what = "creating an object only if it is new, eight at once"
        if not self.backend.capabilities.create_only:
            self.steps.append(Step(what, skipped="this kind of remote has no such operation; dvk does without"))
            return
        with self._step(what):
            key = f"{self._folder}/race"
            self._made.add(key)
            values = [_pattern(5_000, seed=i) for i in range(_RACERS)]
            gate = threading.Barrier(_RACERS)

            def create(i: int) -> bool:
                gate.wait()
                try:
                    self.backend.put(key, [values[i]], create_only=True)
                except KeyExists:
                    return False
                return True

            with ThreadPoolExecutor(_RACERS) as pool:
                winners = [i for i, won in enumerate(pool.map(create, range(_RACERS))) if won]
            found = self.backend.get(key, max_bytes=1 << 20)
            if len(winners) != 1:
                raise _Wrong(
                    Finding(
                        "create-only",
                        f"{len(winners)} of {_RACERS} were told that they made the same object",
                        "dvk works without: it reads back what it wrote, and no name is written twice",
                        fatal=False,
                    )
                )
            if found != values[winners[0]]:
                raise _Wrong(Finding("wrong-content", "an object holds what somebody else failed to write"))

    def multipart(self) -> None:
        """An object that is sent in parts."""
        with self._step("an object of 100 MiB, sent in parts"):
            key = f"{self._folder}/parts"
            data = _pattern(_MULTIPART_BYTES)
            self._write(key, data)
            self._expect_size(key, len(data))
            for offset in (0, (50 << 20) - 7, len(data) - 64):
                self._expect_range(key, data, offset, 64)

    def many(self) -> None:
        """More keys than one page of a listing holds."""
        with self._step(f"a listing of {_MANY:,} objects"):
            keys = [f"{self._folder}/many/{i:04}" for i in range(_MANY)]
            with ThreadPoolExecutor(_RACERS) as pool:
                list(pool.map(lambda key: self._write(key, b"1"), keys))
            missing = set(keys)
            for _ in self._while_patient():
                missing = set(keys) - {row.key for row in self.backend.list(f"{self._folder}/many/")}
                if not missing:
                    return
            if len(missing) >= _MANY - 1_000:
                problem = f"a listing of {_MANY:,} objects shows {_MANY - len(missing):,}"
                raise _Wrong(Finding("list-cap", problem, "this server cuts listings and does not say so"))
            raise _Wrong(Finding("stale-list", f"a listing misses {len(missing)} objects", _HINTS["stale-list"]))

    def deleting(self) -> None:
        """What was deleted is gone, from reading and from listings."""
        with self._step("deleting"):
            key = f"{self._folder}/gone"
            self._write(key, b"gone")
            try:
                self.backend.delete(key)
            except (RemoteDenied, StorageError) as e:
                self._may_delete = False
                raise _Wrong(
                    Finding(
                        "no-delete",
                        f"these credentials may not delete ({e.message})",
                        "as it should be for whoever only pushes; collecting garbage needs the right",
                        fatal=False,
                    )
                ) from e
            self._made.discard(key)
            last = ""
            for _ in self._while_patient():
                seen = "stale-read" if self.backend.stat(key) is not None else ""
                seen = "stale-list" if not seen and any(row.key == key for row in self.backend.list(key)) else seen
                if not seen:
                    break
                last = seen
            else:
                raise _Wrong(Finding("keeps-deleted", "a deleted object is still there", _HINTS["stale-list"]))
            if last:
                raise _Wrong(Finding(last, "a deleted object is seen for a while", _HINTS[last]))

    def reading(self, key: str) -> None:
        """For who may not write: an object of the store can be read, whole and by range."""
        with self._step("reading what is there"):
            size = self.backend.stat(key)
            if size is None:
                return
            data = self.backend.get(key, max_bytes=size)
            if len(data) != size:
                raise _Wrong(_differs(b"\0" * size, data))
            self._ranges(key, data)

    def clean_up(self) -> int:
        """Remove what the probes made; how many could not be removed."""
        with ThreadPoolExecutor(_RACERS) as pool:
            return sum(pool.map(self._remove, sorted(self._made)))

    def _remove(self, key: str) -> int:
        if not self._may_delete:
            return 1
        try:
            self.backend.delete(key)
        except DvkError as e:
            # What was found is worth more than a clean bucket: it is counted. Nobody waits for a dead network again.
            self._may_delete = not isinstance(e, RemoteUnreachable | RemoteDenied)
            return 1
        return 0

    # ------------------------------------------------------------ parts of steps

    @contextmanager
    def _step(self, what: str, *, denied_too: bool = False) -> Iterator[None]:
        """A step; what goes wrong in it is a finding, unless nothing was answered (`denied_too`: or was forbidden)."""
        step = Step(what)
        began = time.monotonic()
        self.steps.append(step)
        try:
            yield
        except _Wrong as wrong:
            step.findings.append(wrong.finding)
        except RemoteUnreachable:
            raise
        except DvkError as e:
            if denied_too and isinstance(e, RemoteDenied):
                raise
            name = "short-answer" if isinstance(e, ShortAnswer) else "wrong-answer"
            step.findings.append(Finding(name, str(e), e.hint or _HINTS.get(name, "")))
        finally:
            step.seconds = time.monotonic() - began
            self._on_step(step)

    def _write(self, key: str, data: bytes) -> None:
        self.backend.put(key, [data])
        with self._lock:
            self._made.add(key)

    def _round_trip(self, name: str, size: int) -> None:
        key, data = f"{self._folder}/{name}", _pattern(size)
        self._write(key, data)
        self._same(key, data)
        self._ranges(key, data)

    def _same(self, key: str, data: bytes) -> None:
        """What was written can be read, all of it and nothing else."""
        self._expect_size(key, len(data))
        try:
            found = self.backend.get(key, max_bytes=len(data) + 100_000)
        except Corrupt as e:
            raise _Wrong(Finding("wrong-answer", str(e), e.hint)) from e
        if found != data:
            raise _Wrong(_differs(data, found))

    def _expect_size(self, key: str, size: int) -> None:
        found = None
        for turn in self._while_patient():
            found = self.backend.stat(key)
            if found is not None:
                if turn:
                    problem = f"an object cannot be read until {turn} looks after it was written"
                    raise _Wrong(Finding("stale-read", problem, _HINTS["stale-read"]))
                break
        if found is None:
            raise _Wrong(
                Finding(
                    "lost-write",
                    "an object was stored, said the server, and is not there",
                    "servers that report an error under the status 200 do this; it cannot be used",
                )
            )
        if found == size:
            return
        if found < size:
            problem = f"an object of {size:,} bytes was stored with {found:,}"
            raise _Wrong(Finding("truncates", problem, "this server, or a proxy before it, cuts uploads"))
        # Larger: whatever was added, the content tells.
        raise _Wrong(_differs(b"\0" * size, self.backend.get(key, max_bytes=found)))

    def _ranges(self, key: str, data: bytes) -> None:
        size = len(data)
        for offset, length in ((0, 1), (0, size), (size // 3, size // 3), (max(0, size - 64), min(64, size))):
            if length > 0 and offset + length <= size:
                self._expect_range(key, data, offset, length)
        try:
            found = self.backend.get_range(key, max(0, size - 1), 65)
        except (Corrupt, FormatError):
            return
        problem = f"{len(found)} bytes came for a range that goes beyond the end"
        raise _Wrong(Finding("wrong-range", problem))

    def _expect_range(self, key: str, data: bytes, offset: int, length: int) -> None:
        try:
            found = self.backend.get_range(key, offset, length)
        except Corrupt as e:
            # The size was right a moment ago.
            raise _Wrong(Finding("short-answer", str(e), _HINTS["short-answer"])) from e
        if len(found) < length:
            problem = f"{len(found):,} bytes came where {length:,} were asked for"
            raise _Wrong(Finding("short-answer", problem, _HINTS["short-answer"]))
        if found != data[offset : offset + length]:
            raise _Wrong(Finding("wrong-range", f"other bytes came than those of the range {offset:,}+{length:,}"))

    def _listed(self, keys: Sequence[str], prefix: str) -> None:
        missing = set(keys)
        for turn in self._while_patient():
            sizes = {row.key: row.size_bytes for row in self.backend.list(prefix)}
            missing = set(keys) - sizes.keys()
            if not missing:
                if turn:
                    problem = "a listing shows a new object only a while after it was written"
                    raise _Wrong(Finding("stale-list", problem, _HINTS["stale-list"]))
                return
        spelled = [row.key for row in self.backend.survey(prefix)]
        raise _Wrong(_respelled(sorted(missing), spelled))

    def _while_patient(self) -> Iterator[int]:
        """0, 1, 2, ... with pauses, until the patience is over; at least twice."""
        turn, deadline = 0, time.monotonic() + self._patience_s
        while turn < 2 or time.monotonic() < deadline:
            yield turn
            time.sleep(min(0.05 * 2**turn, 0.5, self._patience_s))
            turn += 1


def _differs(sent: bytes, found: bytes) -> Finding:
    """What is wrong with an object that came back in another form."""
    if _FRAMING.match(found) and len(found) > len(sent):
        problem = "the framing of the upload was stored inside of the object"
        return Finding("stored-framing", problem, _HINTS["stored-framing"])
    if len(found) < len(sent):
        problem = f"{len(found):,} bytes came back of an object of {len(sent):,}"
        return Finding("short-answer", problem, _HINTS["short-answer"])
    return Finding("wrong-content", "an object came back with other bytes than it was written with")


def _respelled(missing: Sequence[str], listed: Sequence[str]) -> Finding:
    """Why keys that can be read are not in a listing: other letters, other signs, or simply absent."""
    # One that is listed by now as it was written was late, and says nothing about letters.
    folded = {key.casefold() for key in listed} - set(listed)
    if any(key in folded for key in missing):
        return Finding("key-case", "a listing gives keys back in other letters (a or A) than they were written with")
    plain = [key for key in listed if "%" in key or "+" in key or "\\" in key or "=" in key]
    if plain:
        return Finding("key-spelling", f"a listing gives keys back in another spelling, like {plain[0][-60:]!r}")
    problem = f"{len(missing)} objects that can be read are missing in a listing"
    return Finding("stale-list", problem, _HINTS["stale-list"])


def _pattern(size: int, *, seed: int = 0) -> bytes:
    """Bytes that differ wherever an answer could be cut or shifted."""
    period = bytes((i * 7 + (i >> 8) * 13 + seed) & 0xFF for i in range(65_521))
    return (period * (size // len(period) + 1))[:size]
