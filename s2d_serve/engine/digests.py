"""Digests of weight files, each computed once and remembered in the cache.

The cache is `$S2D_CACHE`, or `~/.cache/s2d`; `digests/` in it holds one small file for each file
that was read.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from s2d_serve.errors import WeightsError

WEIGHTS = "model*.safetensors"
"""The files that transformers loads; repositories hold copies in other formats beside them."""

DRAFT_TENSORS = "draft.safetensors"
"""In a trained draft's folder: what was learned."""

MANIFEST = "s2d.json"
"""In a converted folder: what it was made from, and the digest of its weights."""


def cache_folder() -> Path:
    """`$S2D_CACHE`, or `~/.cache/s2d`."""
    return Path(os.environ.get("S2D_CACHE") or "~/.cache/s2d").expanduser().absolute()


def weights_sha256(folder: Path) -> str:
    """The digest that names the weights in `folder`.

    One file: its sha256. Several: the sha256 of what `sha256sum model*.safetensors` prints.
    A converted folder carries it; for others it is computed once and remembered.

    Raises:
        WeightsError: there is no safetensors file.
    """
    manifest = read_json(folder / MANIFEST)
    if manifest is not None:
        return str(manifest["weights_sha256"])
    return digest_of(folder, file_sha256)


def digest_of(folder: Path, digest_of_file: Callable[[Path], str]) -> str:
    """The digest of the safetensors files in `folder`, given how to get that of each."""
    files = sorted(folder.glob(WEIGHTS))
    if not files:
        raise WeightsError(f"{folder} holds no safetensors file")
    if len(files) == 1:
        return digest_of_file(files[0])
    lines = [f"{digest_of_file(file)}  {file.name}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The file's sha256, remembered with the size and times at which it was read.

    Reading a gigabyte takes a second or more, at every start of every executor. The inode's change
    time is part of what is remembered: it moves with every write, also where the modification time
    is put back afterwards.
    """
    path = path.resolve()
    stat = path.stat()
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    key = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    memory = cache_folder() / "digests" / f"{key}.json"
    known = read_json(memory)
    if known is not None and known.get("stamp") == stamp:
        return str(known["sha256"])
    digest = read_sha256(path)
    with suppress(OSError):  # a cache that cannot be written costs time only
        write_json(memory, {"path": str(path), "stamp": stamp, "sha256": digest})
    return digest


def read_sha256(path: Path) -> str:
    """The file's sha256, from its bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in the file; None where there is no file, or what it holds is no object."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write the file in one step: a reader sees the whole of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)
