"""What time it is on a remote: ages of what lies there are reckoned by the clock that wrote its times.

A machine may be off by years, and a collector that believed it would take a push of today for garbage of long ago.
"""

from __future__ import annotations

import secrets
import time

from dvk.backend.contract import Backend
from dvk.errors import RemoteDenied, StorageError
from dvk.events import Note, OnEvent, ignore
from dvk.store.descriptor import KEY

#: Probes; whoever is killed before it removes one leaves it to `gc --sweep --exclusive`.
PREFIX = "g/t-"
#: What a request takes, and what servers round, is no difference of clocks.
_SAME_S = 120


def ahead_of_ours(backend: Backend, *, on_event: OnEvent = ignore) -> float:
    """By how many seconds the clock of a storage is ahead of ours; 0 where it does not tell, or as good as none.

    Where listings say when objects were written, a small one is written, listed and removed again.

    Raises:
        RemoteError: it does not answer.
    """
    known = next(iter(backend.list(KEY)), None)
    if known is None or known.modified_s is None:
        return 0.0
    key = f"{PREFIX}{secrets.token_hex(16)}"
    try:
        backend.put(key, [b"what time is it\n"])
        rows = list(backend.list(key))
    except (RemoteDenied, StorageError) as error:
        note = f"nothing can be written, so ages are judged by the clock of this machine ({error.message})"
        on_event(Note(note, backend.name))
        return 0.0
    try:
        backend.delete(key)
    except (RemoteDenied, StorageError) as error:  # it told the time all the same
        note = f"a small object that was written to learn the time cannot be removed ({error.message})"
        on_event(Note(note, f"{backend.name}/{key}"))
    ahead_s = [row.modified_s - time.time() for row in rows if row.modified_s is not None]
    return ahead_s[0] if ahead_s and abs(ahead_s[0]) > _SAME_S else 0.0
