"""Numbers that are written as text: whether `1.10`, `+1.1` and `110e-2` are the same number, exactly.

>>> canonical(pa.array(["1.10", "+1.1", "110e-2", "-0", "007", "x", None])).to_pylist()
['1.1', '1.1', '1.1', '0', '7', None, None]

Floating point cannot answer this (0.1 + 0.2 is not 0.3, and identifiers of 20 digits lose their last), so each numeral
is brought into one exact form. Plain ones, nearly all there are, by a few passes over the whole column; those with an
exponent one by one.
"""

from __future__ import annotations

from decimal import Context, Decimal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dvk.table.equal.encode import to_mask

_PLAIN = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)$"
_SCIENTIFIC = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]{1,9}$"
_SPECIAL = r"^[+-]?(nan|inf|infinity)$"
_LONGEST_PLAIN = 400  # digits after which the exponent is written out
_EXACT = Context(prec=100_000, Emax=10**12, Emin=-(10**12))
_NOTHING = pa.scalar(None, pa.string())


def canonical(texts: pa.Array, *, special: bool = False) -> pa.Array:
    """string[n]: one text for each number, equal exactly if the numbers are; null where there is no number.

    `special`: NaN and infinities are numbers too. White space around a number does not count.
    """
    texts = pc.utf8_trim_whitespace(texts)
    plain = pc.match_substring_regex(texts, _PLAIN)
    out = _plain(pc.if_else(plain, texts, _NOTHING))
    odd = to_mask(pc.fill_null(pc.match_substring_regex(texts, _SCIENTIFIC), False))
    odd |= to_mask(pc.fill_null(pc.and_(plain, pc.greater(pc.binary_length(texts), _LONGEST_PLAIN)), False))
    if odd.any():
        found = pc.dictionary_encode(texts.filter(pa.array(odd)))
        exact = pa.array([_exact(t) for t in found.dictionary.to_pylist()], pa.string())
        out = pc.replace_with_mask(out, pa.array(odd), exact.take(found.indices))
    if special:
        word = pc.utf8_lower(texts)
        word = pc.if_else(pc.match_substring_regex(word, _SPECIAL), word, _NOTHING)
        for pattern, new in ((r"^\+", ""), (r"^-nan$", "nan"), (r"inity$", "")):
            word = pc.replace_substring_regex(word, pattern, new)
        out = pc.coalesce(out, word)
    return out


def to_float(canonical_texts: pa.Array) -> npt.NDArray[np.float64]:
    """float64[n], the nearest to each number; NaN where there is none."""
    floats = pc.cast(canonical_texts, pa.float64())
    return np.asarray(floats.to_numpy(zero_copy_only=False), np.float64)


def _plain(texts: pa.Array) -> pa.Array:
    texts = pc.replace_substring_regex(texts, r"^\+", "")
    texts = pc.replace_substring_regex(texts, r"^(-?)\.", r"\10.")
    texts = pc.replace_substring_regex(texts, r"^(-?)0+([0-9])", r"\1\2")
    dotted = pc.match_substring(texts, ".")
    texts = pc.if_else(dotted, pc.replace_substring_regex(texts, r"\.?0*$", ""), texts)
    return pc.if_else(pc.equal(texts, "-0"), "0", texts)


def _exact(text: str) -> str:
    """The same form for a numeral with an exponent or very many digits; and long ones keep an exponent."""
    sign, digits, exponent = Decimal(text, _EXACT).as_tuple()
    assert isinstance(exponent, int)
    shown = "".join(map(str, digits)).lstrip("0")
    bare = shown.rstrip("0")
    exponent += len(shown) - len(bare)
    if not bare:
        return "0"
    minus = "-" if sign else ""
    if exponent > _LONGEST_PLAIN or exponent + len(bare) < -_LONGEST_PLAIN or len(bare) > _LONGEST_PLAIN:
        return f"{minus}{bare}e{exponent}"
    if exponent >= 0:
        return minus + bare + "0" * exponent
    whole, fraction = bare[:exponent], bare[exponent:].rjust(-exponent, "0")
    return f"{minus}{whole or '0'}.{fraction}"
