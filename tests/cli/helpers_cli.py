"""Runs the program in this process, with streams of its own."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sample_verbs

from dvk.cli import app


class Stream(io.TextIOWrapper):
    """A text stream over memory that may claim to be a terminal."""

    def __init__(self, text: str = "", *, terminal: bool = False, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(text.encode()), encoding=encoding, write_through=True)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    @property
    def raw_bytes(self) -> bytes:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue()


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        assert self.out.endswith("\n")
        return json.loads(self.out)


def dvk(
    *argv: str,
    environ: Mapping[str, str] | None = None,
    terminal: bool = False,
    answer: str = "",
    encoding: str = "utf-8",
) -> Done:
    """Run the sample program; `answer` is what is typed."""
    out = Stream(terminal=terminal, encoding=encoding)
    err = Stream(terminal=terminal)
    code = app.run(
        argv,
        environ=environ or {},
        stdin=Stream(answer, terminal=terminal),
        stdout=out,
        stderr=err,
        table=sample_verbs.TABLE,
        groups=sample_verbs.GROUPS,
    )
    return Done(code, out.raw_bytes.decode(encoding), err.raw_bytes.decode())
