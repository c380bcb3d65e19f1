"""Records to JSON, without losing a byte and without a serializer per verb.

>>> from msgspec import Struct
>>> class Row(Struct, frozen=True):
...     path: bytes
...     id: bytes
>>> to_json(Row(b"caf\\xe9", bytes(2)))
{'path': {'bytes_b64': 'Y2Fm6Q=='}, 'id': '0000'}

Raw bytes mean two things in dvk: a path, or an id. A field whose type is one of `dvk.ids` or whose name is
`id`, `ids` or ends in `_id`, `_ids` is an id and becomes hexadecimal; other bytes are a name: a plain string
when they are UTF-8, else `{"bytes_b64": ...}`. The rules are published in `docs/json.md`.
"""

from __future__ import annotations

import base64
import functools
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import UTC, date, datetime
from enum import Enum

from msgspec import Struct

_ID_FIELD = re.compile(r"(?:.*_)?ids?")
_ID_TYPES = frozenset({"FileId", "ChunkId", "PageId", "PackId", "RecordId"})

Json = typing.Any  #: None, bool, int, float, str, or lists and dicts of these


def _unchanged(text: str) -> str:
    return text


def to_json(value: object, *, clean: Callable[[str], str] = _unchanged) -> Json:
    """`value` as what `json.dumps` takes. `clean` passes over text (not names): the redactor at the edge.

    Raises:
        TypeError: for a type without a rule; a bug in the record.
    """
    return _convert(value, False, clean)


def _convert(value: object, is_id: bool, clean: Callable[[str], str]) -> Json:
    match value:
        case None | bool():
            return value
        case Enum():
            return value.name.lower().replace("_", "-")
        case str():
            return _text(value, clean)
        case bytes():
            return value.hex() if is_id else _name(value)
        case int():
            return int(value)
        case float():
            return value if math.isfinite(value) else None
        case datetime():
            return _instant(value)
        case date():
            return value.isoformat()
        case Mapping():
            return _mapping(value, is_id, clean)
        case Set():
            return sorted((_convert(v, is_id, clean) for v in value), key=repr)
    if isinstance(value, Struct):
        ids, errors, pairs = _id_fields(type(value)), _error_fields(type(value)), _pair_fields(type(value))
        out = {}
        for name in value.__struct_fields__:
            if not name.startswith("_") and name not in errors:
                # An empty mapping says nothing of its keys, and a field keeps its form whatever it holds.
                held = getattr(value, name)
                out[name] = _convert(held or () if name in pairs else held, name in ids, clean)
        return out
    if isinstance(value, BaseException):
        raise TypeError(f"an error in a record has its own shape: {type(value).__name__}")
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        # numpy, by its shape, since importing it here would cost every start 60 ms. A matrix of bytes is a
        # column of ids.
        shape = getattr(value, "shape", ())
        if str(value.dtype) == "uint8" and len(shape) == 2:
            return [bytes(row).hex() for row in typing.cast(Iterable[bytes], value)]
        return _convert(value.tolist(), is_id, clean)
    if isinstance(value, Sequence) or (hasattr(value, "__len__") and hasattr(value, "__iter__")):
        return [_convert(v, is_id, clean) for v in typing.cast(Iterable[object], value)]
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _name(raw: bytes) -> Json:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return {"bytes_b64": base64.b64encode(raw).decode("ascii")}


def _text(text: str, clean: Callable[[str], str]) -> Json:
    if text.isascii():
        return clean(text)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates: bytes that came in through os.fsdecode
        try:
            return _name(text.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:
            return text.encode("utf-8", "backslashreplace").decode("utf-8")
    return clean(text)


def _instant(value: datetime) -> str:
    if value.tzinfo is None:
        return value.isoformat()
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _mapping(value: Mapping[object, object], is_id: bool, clean: Callable[[str], str]) -> Json:
    if all(isinstance(k, str) for k in value):
        return {str(k): _convert(v, bool(_ID_FIELD.fullmatch(str(k))) or is_id, clean) for k, v in value.items()}
    # JSON keys are text and these are not: a list of pairs keeps every one of them.
    return [{"key": _convert(k, False, clean), "value": _convert(v, is_id, clean)} for k, v in value.items()]


@functools.cache
def _id_fields(record: type[Struct]) -> frozenset[str]:
    """The fields of a record whose bytes are ids, by type or by name."""
    hints = typing.get_type_hints(record)
    return frozenset(
        name for name in record.__struct_fields__ if _ID_FIELD.fullmatch(name) or _mentions_id(hints.get(name, object))
    )


@functools.cache
def _error_fields(record: type) -> frozenset[str]:
    """The fields of a record that hold errors: the envelope has these, in their own shape."""
    hints = typing.get_type_hints(record)
    return frozenset(name for name, hint in hints.items() if any(_is_error(h) for h in (hint, *typing.get_args(hint))))


@functools.cache
def _pair_fields(record: type) -> frozenset[str]:
    """The fields of a record that hold mappings whose keys are no text."""
    hints = typing.get_type_hints(record)
    return frozenset(
        name
        for name, hint in hints.items()
        if isinstance(origin := typing.get_origin(hint), type)
        and issubclass(origin, Mapping)
        and typing.get_args(hint)[0] is not str
    )


def _is_error(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, BaseException)


def _mentions_id(hint: object) -> bool:
    if isinstance(hint, typing.NewType):
        return hint.__name__ in _ID_TYPES and hint.__module__ == "dvk.ids"
    return any(_mentions_id(part) for part in typing.get_args(hint))
