"""Is this place still the one that we know, and is it a place for a remote at all?

Problem: somebody empties a bucket or points a URL at another store, and the next push quietly starts anew, while the
versions that older clones rely on are gone. Or a remote lies in a tracked folder, and the next `dvk add` versions the
remote in itself.

Choice: a clone remembers the id of the store behind each URL. Another one, or none, is refused by name until
`dvk remote trust` says that it is right; nothing has to be asked twice. A folder of this machine must not be, hold or
lie in what dvk or Git track here.
"""

from __future__ import annotations

import os

from dvk.backend.contract import Backend
from dvk.backend.locate import parse_remote_url
from dvk.errors import Refused
from dvk.store.descriptor import Descriptor
from dvk.store.names import show
from dvk.store.store import Store
from dvk.workspace.repo import Workspace


class KnownStore(Store):
    """The store of a remote, which has to be the one that was there before.

    Args:
        expected: the id that this clone saw at the URL; empty when it never saw one.
        name: of the remote, for the hint.
    """

    def __init__(self, backend: Backend, *, expected: str, name: str, url: str) -> None:
        super().__init__(backend)
        self._expected, self._remote_name, self._url = expected, name, url

    def describe_again(self) -> Descriptor | None:
        """As for every store.

        Raises:
            Refused: there is another store, or none any more.
        """
        found = super().describe_again()
        if not self._expected or (found is not None and found.store == self._expected):
            return found
        if found is None:
            what = f"the dvk store that this clone used here before ({self._expected[:12]}) is gone"
        else:
            what = f"this is another dvk store ({found.store[:12]}) than this clone used here before"
            what += f" ({self._expected[:12]})"
        raise Refused(
            what,
            subject=self._url,
            hint=f"if it was replaced on purpose: `dvk remote trust {self._remote_name}`; else ask who looks after it",
        )


def check_place(workspace: Workspace, url: str) -> None:
    """Refuse a folder that this workspace tracks, lies in, or keeps its own data in.

    Raises:
        Refused: saying what is in the way.
    """
    parsed = parse_remote_url(url)
    if not parsed.is_local:
        return
    place = os.path.realpath(os.fsencode(parsed.path))
    for own in (workspace.store_dir, workspace.common_dir):
        if _is_in(place, os.path.realpath(own)) or _is_in(os.path.realpath(own), place):
            raise Refused("dvk keeps its own data of this clone there", subject=url, hint=_ELSEWHERE)
    top = os.path.realpath(workspace.top)
    if _is_in(top, place):
        raise Refused("this workspace lies in that folder", subject=url, hint=_ELSEWHERE)
    if not _is_in(place, top):
        return
    inner = place[len(top) + 1 :]
    owner = workspace.owner_of(inner)
    below = next(iter(workspace.worktree_pointers([inner])), None)
    held = [] if workspace.git is None else workspace.git.tracked_under(inner)
    if owner is not None or below is not None or held:
        what = show(owner[0] if owner is not None else below[0] if below is not None else held[0])
        raise Refused(f"that folder belongs to what is tracked here ({what})", subject=url, hint=_ELSEWHERE)


_ELSEWHERE = "choose a folder outside of the repository"


def _is_in(path: bytes, folder: bytes) -> bool:
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")
