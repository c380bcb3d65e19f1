"""Values of JSON Lines as what they are: JSON.

{"a": null, "b": "null"}        a is JsonText('null'), b is JsonText('"null"'), and c, which is not there, is None
"""

from __future__ import annotations


class JsonText(str):
    """A JSON value as its text in one form: white space, escapes and the order of members say nothing in it."""

    __slots__ = ()
