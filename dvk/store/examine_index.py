"""Whether the segments of an index say of packs what their footers say.

check = IndexCheck(store)
check.pack(name, footer, subject=...)     # for each pack that is read anyway
check.all_damage(but=damaged_packs)
"""

from __future__ import annotations

import re
from collections.abc import Container

import numpy as np

from dvk.backend.contract import KeyMissing
from dvk.backend.disk import patiently
from dvk.errors import Corrupt, FormatError, StorageError
from dvk.store.catalog import file_column
from dvk.store.examine import Damage
from dvk.store.index import Segment, Table, parse_segment, prefixes
from dvk.store.names import I64, U8, distinct
from dvk.store.pack import Footer
from dvk.store.store import Store

_MAX_SEGMENT_BYTES = 1 << 40
_SEGMENT_KEY = re.compile(r"i/(?:([0-9]{1,2})|bad)-[0-9a-f]{32}")


class IndexCheck:
    """Whether segments say what the footers say. `pack` may be called from several threads."""

    def __init__(self, store: Store) -> None:
        self.damage: list[Damage] = []
        self._disagree: list[tuple[bytes, Damage]] = []
        self._segments: list[tuple[str, Segment, dict[bytes, int], tuple[I64, I64]]] = []
        for item in store.backend.list("i/"):
            match = _SEGMENT_KEY.fullmatch(item.key)
            if match is None:
                continue
            subject = f"{store.name}/{item.key}"
            try:
                data = patiently(lambda key=item.key: store.backend.view(key, max_bytes=_MAX_SEGMENT_BYTES))  # type: ignore[misc]
                segment = parse_segment(data, subject=subject, check=True)
                if int(match[1] or 0) != segment.level:
                    raise Corrupt("an index segment is of another level than its name says", subject=subject)
                if any(bool((t.prefix[1:] < t.prefix[:-1]).any()) for t in (segment.chunks, segment.recipes)):
                    raise Corrupt("an index segment is not in order", subject=subject)
            except KeyMissing:
                continue  # merged meanwhile
            except (FormatError, StorageError) as error:
                self.damage.append(Damage(item.key, error))
                continue
            if match[1] is not None:
                number = {name: i for i, name in enumerate(segment.packs)}
                counts = (_counts(segment.chunks, len(number)), _counts(segment.recipes, len(number)))
                self._segments.append((item.key, segment, number, counts))

    def pack(self, name: bytes, footer: Footer, *, subject: str) -> None:
        """Compare what is said of one pack."""
        for key, segment, number, (chunks, recipes) in self._segments:
            p = number.get(name)
            if p is None:
                continue
            right = _says(segment.chunks, p, footer.ids, int(chunks[p]))
            if not right or not _says(segment.recipes, p, file_column(footer), int(recipes[p])):
                error = Corrupt(f"the index says of pack {name.hex()[:12]} what its footer does not", subject=subject)
                self._disagree.append((name, Damage(key, error)))

    def all_damage(self, *, but: Container[bytes]) -> list[Damage]:
        """What is wrong with segments; what they say of some packs, which are damaged themselves, does not count."""
        return [*self.damage, *(d for name, d in self._disagree if name not in but)]


def _counts(table: Table, packs: int) -> I64:
    return np.bincount(table.pack, minlength=packs).astype(np.int64)


def _says(table: Table, pack: int, ids: U8, count: int) -> bool:
    """Whether a table names each of a pack's ids with its row, and no other row of it."""
    if count != len(ids):
        return False
    which, at = table.find(prefixes(ids))
    mine = (table.pack[at] == pack) & (table.row[at] == which)
    return len(distinct(which[mine])) == len(ids)
