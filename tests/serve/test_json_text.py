from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gritkit.errors import InputError
from gritkit_serve.json_text import check

LIMITS = {"max_depth": 8, "max_containers": 100}


def refusal(body: bytes) -> str:
    with pytest.raises(InputError) as raised:
        check(body, **LIMITS)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "value",
    [
        {"text": 'a "quoted" [[[[[[[[[[[[[[ {{{{{{{ \\" \\\\', "more": ["\\"]},
        {"a\\": "[" * 1000, 'b"': "}" * 1000},
        "[" * 1000,
        "🦊 \ud83e\udd8a",
        [[[[[[[[]]]]]]]],
        [{}] * 99,
        {"n": 1.5e308, "i": 10**300},
        None,
    ],
)
def test_what_is_in_strings_and_within_limits_passes(value: object) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        if b"\xed\xa0" not in text:  # the pair as two halves in UTF-8 is a test of its own
            check(text, **LIMITS)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=12,
    ),
    st.booleans(),
)
def test_every_json_value_passes(value: object, ascii_only: bool) -> None:
    check(json.dumps(value, ensure_ascii=ascii_only).encode(), max_depth=64, max_containers=1000)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "it is empty"),
        (b"{", "is not valid JSON"),
        (b'{"a": 1,}', "is not valid JSON"),
        (b'{"a": "b', "is not valid JSON"),
        (b'"\\', "is not valid JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "is not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": "\xff"}', "not UTF-8: byte 7"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' twice"),
        (b'[{"x": {"y": 1, "y": 1}}]', "'y' twice"),
        (b'{"a": NaN}', "has NaN"),
        (b'{"a": -Infinity}', "has -Infinity"),
        (b'{"a": 1e999}', "has 1e999"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number that cannot be read"),
        (b'{"a": "\\ud83e"}', "half of a surrogate pair"),
        (b'{"\\udd8a": 1}', "half of a surrogate pair"),
        (b"[" * 9 + b"]" * 9, "more than 8 levels"),
        (b'{"a":' * 9 + b"1" + b"}" * 9, "more than 8 levels"),
        (b"[" * 200_000, "more than 100 lists and objects"),
        (b"[" + b"[]," * 200 + b"[]]", "more than 100 lists and objects"),
        (b"]" * 200_000, "more than 100 lists and objects"),
    ],
)
def test_what_should_not_be_parsed_is_refused_in_one_line(body: bytes, says: str) -> None:
    assert says in refusal(body)


def test_hostile_quotes_take_linear_time() -> None:
    body = b'"' + b'\\"' * (4 << 20)
    assert "is not valid JSON" in refusal(body)  # quadratic, this would take hours
