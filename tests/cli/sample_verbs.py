"""Verbs for the tests of the terminal layer: each does one thing that a real verb may do."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Annotated

import typer
from msgspec import Struct

from dvk.cli.grammar import Row
from dvk.cli.text import Line, green, size
from dvk.cli.verb import Run, verb
from dvk.errors import DataMissing, DvkError, Partial, Refused, RemoteDenied
from dvk.events import Meter, Note
from dvk.ids import FileId


class Sent(Struct, frozen=True):
    path: bytes
    root: FileId
    sent_bytes: int


def shown(sent: Sent) -> Iterator[Line]:
    from dvk.store.names import show

    yield ("sent ", green(show(sent.path)), f", {size(sent.sent_bytes)}")


@verb(render=shown)
def send(
    run: Run,
    paths: Annotated[list[str] | None, typer.Argument(help="What to send.")] = None,
    remote: Annotated[str, typer.Option(help="Where to.")] = "origin",
) -> Sent:
    """Send a path.

    More about it.
    """
    run.on_event(Note(f"going to {remote}", subject="send", hint="no hurry"))
    return Sent(os.fsencode((paths or ["data.csv"])[0]), FileId(bytes(32)), 28_000_000)


@verb(render=lambda cwd: [cwd], answer=True)
def where(run: Run) -> str:
    """Say where we are."""
    return os.fsdecode(run.cwd)


@verb(render=lambda found: [str(found)], answer=True)
def dashes(run: Run, words: Annotated[list[str] | None, typer.Argument()] = None) -> list[list[str] | None]:
    """Show what stood before and after the dashes."""
    return [words, None if run.after_dashes is None else list(run.after_dashes)]


@verb(render=lambda _: ["different"], answer=True)
def compare(run: Run, exit_code: Annotated[bool, typer.Option("--exit-code")] = False) -> str:
    """Find differences."""
    run.differences(exit_code)
    return "different"


FAILURES = (
    DataMissing("on no remote", subject="a.csv", hint="ask its author for `dvk push`"),
    DataMissing("on no remote", subject="b.csv", hint="ask its author for `dvk push`"),
)


@verb(render=shown)
def some(run: Run) -> Sent:
    """Succeed for a part."""
    run.partial(FAILURES, of=3)
    return Sent(b"c.csv", FileId(bytes(32)), 1)


@verb()
def fail(run: Run, how: str, text: Annotated[str, typer.Argument()] = "no") -> None:
    """Fail in a chosen way."""
    match how:
        case "refused":
            raise Refused(text, subject="data/x", hint="move it away")
        case "denied":
            raise RemoteDenied(text)
        case "partial":
            raise Partial("2 of 2 paths failed", failures=FAILURES)
        case "bug":
            raise KeyError(text)
        case "disk":
            raise OSError(28, "No space left on device", "/data/x")
        case "record":
            run.terminal.document("fail", result=object())
        case "pipe":
            read, write = os.pipe()
            os.close(read)
            os.write(write, b"x")
        case "log":
            logging.getLogger("botocore").warning("%s", text)
            thread = threading.Thread(target=lambda: 1 // 0)
            thread.start()
            thread.join()
        case "plain":
            raise DvkError(text)


@verb()
def ask(run: Run) -> None:
    """Ask a person."""
    run.confirm("delete 3 versions?", option="--yes")


@verb(render=lambda n: (f"line {i}" for i in range(n)), answer=True)
def count(run: Run, n: Annotated[int, typer.Argument()] = 200_000) -> int:
    """Write many lines."""
    return n


@verb()
def work(run: Run, seconds: float = 1.2) -> None:
    """Work for a while, with events."""
    meter = Meter(run.on_event, "upload", total_bytes=1000)
    for step in range(10):
        time.sleep(seconds / 10)
        if step == 7:
            run.on_event(Note("nearly there"))
        meter.advance(bytes_=100)


@verb()
def wait(run: Run, stubborn: bool = False) -> None:
    """Wait for a signal, after saying so."""
    try:
        run.terminal.stderr.write("ready\n")
        run.terminal.stderr.flush()
        time.sleep(20)
    finally:
        if stubborn:
            run.terminal.stderr.write("unwinding\n")
            run.terminal.stderr.flush()
            time.sleep(20)


@verb()
def ignored(run: Run) -> None:
    """Say whether SIGINT is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        raise Refused("ignored")


TABLE = (
    *(
        Row(name, f"{__name__}:{name}", "Samples")
        for name in [
            "send",
            "where",
            "dashes",
            "compare",
            "some",
            "fail",
            "ask",
            "count",
            "work",
            "wait",
            "ignored",
        ]
    ),
    Row("remote add", f"{__name__}:send", "Groups"),
    Row("remote list", f"{__name__}:where", "Groups"),
)
GROUPS = {"remote": "Manage remotes."}
