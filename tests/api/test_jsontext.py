import pytest

from s2d_serve.api.jsontext import read_object, show, to_json
from s2d_serve.errors import RequestError


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "line 1, column 1: Expecting value"),
        (b"{", "line 1, column 2"),
        (b'{"a": 1} {}', "Extra data"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"a": "\n"}', "control character"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "byte 7 is not UTF-8"),  # a surrogate in UTF-8
        (b"[1, 2]", "must be a JSON object, got a list of 2"),
        (b'"text"', 'must be a JSON object, got "text"'),
        (b"null", "must be a JSON object, got null"),
        (b'{"a": 1, "b": 2, "a": 3}', 'the key "a" appears twice'),
        (b'{"x": {"a": 1, "a": 1}}', 'the key "a" appears twice'),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "too many digits"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    ],
)
def test_a_body_that_is_no_plain_json_object_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_object(body)
    assert message in str(refused.value)
    assert refused.value.param is None
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


def test_an_object_comes_as_python_values() -> None:
    body = '{"a": [1, 2.5, true, null, "\\u00e9ß"], "b": {}}'.encode()
    assert read_object(body) == {"a": [1, 2.5, True, None, "éß"], "b": {}}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb", '"a\\nb"'),
        ("\ud800", '"\\ud800"'),
        ("x" * 1000, '"' + "x" * 60 + '..."'),
        (10**1000, "1" + "0" * 59 + "..."),
        (True, "true"),
        (None, "null"),
        (0.5, "0.5"),
        ([[[]]], "a list of 1"),
        ({"a": 1}, "an object"),
    ],
)
def test_a_value_is_shown_on_one_short_line(value: object, shown: str) -> None:
    assert show(value) == shown


def test_json_that_goes_out_is_compact_ascii() -> None:
    assert to_json({"a": ["é\u2028", None]}) == b'{"a":["\\u00e9\\u2028",null]}'


def test_json_that_goes_out_has_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"a": float("nan")})
