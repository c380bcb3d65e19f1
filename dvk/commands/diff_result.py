"""What `dvk diff` answers: records, which hold what was compared and nothing of how it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from msgspec import Struct, field

from dvk.commands.diff_folder import FolderChanges
from dvk.commands.diff_html import html_fragment
from dvk.errors import DvkError

if TYPE_CHECKING:
    from dvk.table.result import TableDiff
    from dvk.table.tensors.compare import TensorDiff


class Item(Struct, frozen=True):
    """What one side has at a path. `id` None: a link, a part of a folder, or a file on disk that was not read."""

    kind: str  #: `file`, `dir` or `link`
    size: int
    files: int
    id: bytes | None = None
    exec: bool = False


class PathDiff(Struct):
    """One path.

    `status`: `unchanged`, `added`, `removed`, `changed`; `kind-changed`: a file became a folder or the other way round;
    `missing`: its data is in this clone and not on disk; `not-present`: its data was never here, no difference.
    """

    path: bytes
    status: str
    a: Item | None = None
    b: Item | None = None
    new_bytes: int | None = None  #: content of B that A does not have; None: not known here
    files: FolderChanges | None = None  #: of a folder that changed; names count from `base`
    base: bytes = b""
    not_present: int = 0  #: files that this worktree never asked for; they count as its pointer says
    table: TableDiff | None = None
    tensors: TensorDiff | None = None
    inside: list[PathDiff] = field(default_factory=list)  #: contents of a folder, where these were asked for

    @property
    def differs(self) -> bool:
        """Whether there is a difference; a table written anew with the same values has none."""
        if self.status in ("unchanged", "not-present"):
            return False
        content = self.table or self.tensors
        return content is None or self.status != "changed" or not content.equal

    def each(self) -> Iterator[PathDiff]:
        """This, and what was compared inside."""
        yield self
        for path in self.inside:
            yield from path.each()

    def close(self) -> None:
        """Let go of what the comparison of contents holds."""
        for part in self.each():
            if part.table is not None:
                part.table.close()


class DiffResult(Struct):
    """The answer. A context manager: a table that was compared holds a temporary file and its sources until the end."""

    a: str  #: for people: `v1.0`, `index`, the name of a file
    b: str
    paths: list[PathDiff] = field(default_factory=list)
    failures: list[DvkError] = field(default_factory=list)
    remote: str = ""  #: where data was read from that is not here
    _held: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> DiffResult:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def equal(self) -> bool:
        """Nothing differs, as far as could be told; see `failures`."""
        return not any(p.differs for p in self.paths)

    @property
    def differing(self) -> list[PathDiff]:
        """The paths with a difference."""
        return [p for p in self.paths if p.differs]

    def _repr_html_(self) -> str:
        """For notebooks."""
        return html_fragment(self)

    def close(self) -> None:
        """Let go of temporary files and connections. Rows cannot be asked for any more."""
        for path in self.paths:
            path.close()
        self._held.close()
