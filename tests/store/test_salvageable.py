"""What damaged packs hold may have been written by anybody: a list there that is none ends no look."""

from __future__ import annotations

import pytest
from synckit import new_store

from dvk.ids import PageId
from dvk.store.pages import Children, ListKind, PageRef, format_page, page_id
from dvk.store.root import FOLDER, Root
from dvk.store.salvageable import Salvageable
from dvk.store.wholeness import State, Wholeness

LISTING = ListKind.LISTING


class Pages(Salvageable):
    """Pages in damaged packs, under their ids."""

    def __init__(self) -> None:
        super().__init__(new_store())
        self.found: dict[bytes, bytes] = {}

    def take(self, data: bytes) -> PageId:
        name = page_id(LISTING, data)
        self.found[name] = data
        return name

    def find_page(self, name: bytes) -> bytes | None:
        return self.found.get(name)


def above(child: PageId) -> bytes:
    return format_page(LISTING, 1, Children((PageRef(child, 2, 2, 2, b"a"), PageRef(child, 2, 2, 2, b"b"))))


@pytest.mark.parametrize("depth", [0, 1, 3000])
def test_a_page_that_is_none_cannot_be_saved_and_ends_no_look(depth: int) -> None:
    pages = Pages()
    name = pages.take(b"no page at all")
    for _ in range(depth):
        name = pages.take(above(name))
    found = Wholeness(new_store(), salvageable=pages).look(Root(FOLDER, name, 4, 4))
    assert found.state is not State.WHOLE and not any(m.saved for m in found.missing)
