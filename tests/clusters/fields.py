"""What is wrong with a Kubernetes object, by a table of published field names."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

TYPES: dict[str, dict[str, str]] = yaml.safe_load(
    Path(__file__).with_name("fields.yaml").read_text("utf-8")
)


def _is_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


VALUES: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "texts": _is_texts,
    "map": _is_map,
    "flag": lambda value: isinstance(value, bool),
    "whole": _is_whole,
    "port": lambda value: _is_whole(value) or isinstance(value, str),
    "quantity": lambda value: re.fullmatch(r"\d+(\.\d+)?(m|[KMGT]i?)?", str(value)) is not None,
}


def problems(document: dict[str, Any]) -> list[str]:
    """Unknown, missing and wrongly typed fields of an object, each with its path."""
    return list(_problems(document, document["kind"], document["kind"]))


def _problems(value: Any, kind: str, path: str) -> Iterator[str]:
    if kind.endswith("+"):
        if not isinstance(value, list):
            yield f"{path}: no list"
            return
        for index, item in enumerate(value):
            yield from _problems(item, kind.removesuffix("+"), f"{path}[{index}]")
    elif kind in VALUES:
        if not VALUES[kind](value):
            yield f"{path}: {value!r} is no {kind}"
    elif not isinstance(value, dict):
        yield f"{path}: {value!r} is no {kind}"
    else:
        fields = {name.removesuffix("!"): field for name, field in TYPES[kind].items()}
        required = {name[:-1] for name in TYPES[kind] if name.endswith("!")}
        yield from (f"{path}.{name}: missing" for name in sorted(required - value.keys()))
        for name, inner in value.items():
            if name in fields:
                yield from _problems(inner, fields[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}: no such field of {kind}"
