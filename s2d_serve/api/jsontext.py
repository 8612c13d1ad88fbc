"""JSON between bytes and values: strict where it comes in, ASCII where it goes out."""

import json
from collections.abc import Mapping
from typing import NoReturn

from s2d_serve.errors import RequestError, bad_request

Json = dict[str, object]

MAX_SHOWN = 60
"""Characters of a client's value that an error message repeats."""


def show(value: object) -> str:
    """A client's value for an error message: one short line, whatever it is."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return json.dumps(value if len(value) <= MAX_SHOWN else value[:MAX_SHOWN] + "...")
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def read_object(body: bytes) -> Json:
    """The JSON object in a request's body.

    Raises:
        RequestError: it is not UTF-8, not JSON, not an object, or has a meaning that depends on
            who reads it (a key twice, NaN).
    """
    value = _read(body)
    if not isinstance(value, dict):
        raise bad_request(f"body: must be a JSON object, got {show(value)}")
    return value


def to_json(body: Mapping[str, object]) -> bytes:
    """The body as JSON, in ASCII: some clients of SSE also end a line at U+2028.

    Raises:
        ValueError: a number is not finite, which JSON cannot say.
    """
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def _read(body: bytes) -> object:
    try:
        return json.loads(
            body.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_refuse
        )
    except RequestError:
        raise
    except UnicodeDecodeError as error:
        message = f"byte {error.start} is not UTF-8; send JSON in UTF-8"
    except json.JSONDecodeError as error:
        message = f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
    except RecursionError:
        message = "JSON nested too deeply; no field needs more than 5 levels"
    except ValueError:  # what int() says of thousands of digits
        message = "a number has too many digits; no field needs more than 19"
    raise bad_request(f"body: {message}")


def _without_repeats(members: list[tuple[str, object]]) -> Json:
    result = dict(members)
    if len(result) < len(members):
        seen: set[str] = set()
        for key, _ in members:
            if key in seen:
                raise bad_request(f"body: the key {show(key)} appears twice; send it once")
            seen.add(key)
    return result


def _refuse(constant: str) -> NoReturn:
    raise bad_request(f"body: {constant} is not JSON; send a finite number")
