"""Answers that are regular expressions, looked up in texts."""

import pytest

from realm_jax.data.answer_patterns import contains_match


@pytest.mark.parametrize(
    ("text", "patterns", "found"),
    [
        ("It is 20,320 feet high", [r"20\s?,?\s?(32|40)0\s?-?\s?f(ee|oo)t"], True),  # anywhere in the text
        ("in FEBRUARY they met", ["feb"], True),
        ("the end\nOslo\nbegin", ["^oslo$"], True),  # every line
        ("Caf\u00e9", ["cafe\u0301"], True),  # both in NFD
        ("Cafe\u0301", ["caf\u00e9"], True),
        ("a (b", ["(", "[b"], False),
        ("a (b", ["(", "b"], True),
        ("anything", [], False),
    ],
)
def test_contains_match(text, patterns, found):
    assert contains_match(text, patterns) is found
