"""What no format changes about a table in a file: what it is of, its columns, what it tells, the rows it decoded."""

from __future__ import annotations

import threading

from dvk.table.contract import Column, Notice, Source


class FileTable:
    """The part of `dvk.table.contract.Table` that all readers share. Rows are counted from any thread."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._columns: tuple[Column, ...] = ()
        self._declared_key: tuple[str, ...] = ()
        self._notices: list[Notice] = []
        self._rows_decoded = 0
        self._counting = threading.Lock()

    @property
    def source(self) -> Source:
        return self._source

    @property
    def columns(self) -> tuple[Column, ...]:
        return self._columns

    @property
    def declared_key(self) -> tuple[str, ...]:
        return self._declared_key

    @property
    def notices(self) -> tuple[Notice, ...]:
        return tuple(self._notices)

    @property
    def rows_decoded(self) -> int:
        return self._rows_decoded

    def close(self) -> None:
        """Close the source too."""
        self._source.close()

    def _count_decoded(self, rows: int) -> None:
        with self._counting:
            self._rows_decoded += rows
