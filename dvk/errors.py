"""What can go wrong, grouped by what the caller would do about it.

    DvkError
    ├── UsageError          the request makes no sense as written; nothing was touched
    ├── NotARepository      no Git work tree (or plain dvk folder) here
    ├── NotFound            a path, revision, remote or key that was named does not exist
    ├── Refused             dvk could do it and will not: user data or somebody's rule is in the way
    │   └── Unsafe          collecting garbage could delete what somebody needs; nothing was deleted
    ├── Busy                another process holds what we need; try again
    ├── ChangedWhileRead    a file changed under our hands; nothing of it was recorded
    ├── DataMissing         the data of a known id is not here (and maybe nowhere)
    ├── Damaged             `verify` found damage, or `repair` could not mend all of it; the report names it
    ├── FormatError         bytes that are not what they should be: malformed
    │   ├── NewerFormat     written by a newer dvk than this one
    │   └── Corrupt         well-formed once, and now failing its hash or checksum
    ├── TableError          a user's file is no table as its format says, or cannot be compared as asked
    ├── StorageError        a medium refused: permissions, I/O error, read-only
    │   └── StorageFull     no space (or quota) left
    ├── RemoteError         a remote answered wrongly
    │   ├── RemoteUnreachable   no answer within the deadline
    │   ├── RemoteDenied        credentials missing, wrong, expired or without the right
    │   └── NotOurs             it is there and is not the dvk store we expected
    ├── Partial             some paths succeeded and some did not; `failures` says which
    └── Interrupted         Ctrl-C or SIGTERM; the same command continues

Every error says what happened (`message`), to which object (`subject`) and what to do next (`hint`,
where we know it). `kind` is a stable word for programs. The terminal layer alone turns a category into an exit
code (`dvk.cli.exit_codes`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar


class DvkError(Exception):
    """Base of every error that dvk raises on purpose."""

    kind: ClassVar[str] = "failed"

    def __init__(self, message: str, *, subject: str = "", hint: str = "", failures: Sequence[DvkError] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.subject = subject
        self.hint = hint
        self.failures = tuple(failures)  #: one error for each of several objects, where there are several

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}" if self.subject else self.message


class UsageError(DvkError):
    kind = "usage"


class NotARepository(DvkError):
    kind = "not-a-repository"


class NotFound(DvkError):
    kind = "not-found"


class Refused(DvkError):
    kind = "refused"


class Unsafe(Refused):
    kind = "unsafe"


class Busy(DvkError):
    kind = "busy"


class ChangedWhileRead(DvkError):
    kind = "changed-while-read"


class DataMissing(DvkError):
    kind = "data-missing"


class Damaged(DvkError):
    """Versions or objects of a store are damaged or lost; the record beside it says which."""

    kind = "damaged"


class FormatError(DvkError):
    kind = "malformed"


class TableError(DvkError):
    """Ragged rows, text in another encoding, a broken footer; or a comparison that cannot be made as asked."""

    kind = "table"


class NewerFormat(FormatError):
    kind = "newer-format"


class Corrupt(FormatError):
    kind = "corrupt"


class StorageError(DvkError):
    kind = "storage"


class StorageFull(StorageError):
    kind = "storage-full"


class RemoteError(DvkError):
    """`transient` says that the same request may well succeed if it is sent again."""

    kind = "remote"

    def __init__(self, message: str, *, subject: str = "", hint: str = "", transient: bool = False) -> None:
        super().__init__(message, subject=subject, hint=hint)
        self.transient = transient
        self.retry_after_s: float | None = None  #: how long the server asked to be left alone


class RemoteUnreachable(RemoteError):
    kind = "remote-unreachable"

    def __init__(self, message: str, *, subject: str = "", hint: str = "", transient: bool = True) -> None:
        super().__init__(message, subject=subject, hint=hint, transient=transient)


class RemoteDenied(RemoteError):
    kind = "remote-denied"


class NotOurs(RemoteError):
    kind = "not-ours"


class Interrupted(DvkError):
    kind = "interrupted"


class Partial(DvkError):
    """Some of the work succeeded; `failures` holds one error for each path that did not."""

    kind = "partial"


def one_or_many(message: str, failures: Sequence[DvkError], *, hint: str = "") -> DvkError:
    """The only failure itself, or one error of the first one's category that names them all."""
    if len(failures) == 1:
        return failures[0]
    error = copy.copy(failures[0])  # keeps what its category knows besides
    error.args, error.message, error.subject = (message,), message, ""
    error.hint, error.failures = hint or failures[0].hint, tuple(failures)
    return error
