"""A draft of one's own: data -> train -> calibrate -> serve -> eval, by the commands."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.cli.conftest import Args, Run, WriteFile
from tests.engine.tiny import nested_model, save_tiny, tiny_model

WORDS = ("the", "stop", "thing", "in")


@pytest.fixture(autouse=True)
def threads_restored() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_args(tmp_path: Path) -> Args:
    """One target and its draft: the same four layers, of which the first two say little yet."""
    model = nested_model("llama", seed=5, exit_layer=2, agreement_scale=0.7, num_layers=4)
    return one_target(save_tiny(tmp_path / "family", model))


def one_target(folder: Path) -> Args:
    base = {"source": str(folder), "dtype": "float32", "num_threads": 1, "max_context": 256}
    speculation = {"draft_length": "fixed", "max_draft_tokens": 2}
    return {"draft": base, "targets": {"own": base | {"speculation": speculation}}}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"{word} {i}" for i in range(20) for word in WORDS))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [
        {"question_id": i, "category": category, "turns": [f"{word} {i}", "and then"]}
        for i, (word, category) in enumerate(zip(WORDS, ("qa", "qa", "math", "math"), strict=True))
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def evaluated(run: Run, file: Path, questions: Path, output: Path, *options: str) -> dict[str, Any]:
    result = run(
        "eval",
        output,
        "-f",
        file,
        "--prompts",
        questions,
        "--max-tokens",
        60,
        "--repeats",
        1,
        *options,
    )
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads((output / "results.json").read_text())
    return report


def test_a_family_of_ones_own(
    own_args: Args, write_file: WriteFile, run: Run, prompts: Path, questions: Path, tmp_path: Path
) -> None:
    untrained = own_args | {"draft": own_args["draft"] | {"exit_layers": [2, 4]}}
    before = evaluated(run, write_file(untrained), questions, tmp_path / "0", "--fixed-exits")
    rows, draft = tmp_path / "rows.jsonl", tmp_path / "draft"
    file = write_file(own_args)
    result = run(
        "data",
        "answers",
        rows,
        "-f",
        file,
        "--prompts",
        prompts,
        "--number",
        80,
        "--max-tokens",
        60,
        "--max-context",
        128,
        "--exclude",
        questions,
    )
    assert result.exit_code == 0, result.output
    assert "4 prompts were left out" in result.output
    result = run(
        "train",
        draft,
        "-f",
        file,
        "--rows",
        rows,
        "--exits",
        "2,4",
        "--epochs",
        8,
        "--mlp-size",
        32,
        "--batch-tokens",
        256,
        "--ridge-tokens",
        2048,
    )
    assert result.exit_code == 0, result.output
    assert (draft / "curves.png").stat().st_size > 1000
    assert (draft / "curves.csv").read_text().count("\n") > 10
    card = (draft / "README.md").read_text()
    assert "s2d" in card
    assert "rows.jsonl" in card
    trained = own_args | {"draft": own_args["draft"] | {"trained": str(draft)}}
    file = write_file(trained)
    calibration = tmp_path / "calibration.yaml"
    result = run(
        "calibrate",
        calibration,
        "-f",
        file,
        "--prompts",
        prompts,
        "--number",
        6,
        "--max-tokens",
        40,
    )
    assert result.exit_code == 0, result.output
    found = yaml.safe_load(calibration.read_text())["targets"]["own"]
    assert found["expected_speedup"] >= max(found["best_fixed_exit"].values())
    assert found["acceptance"]["4"] == 1.0  # the draft's last exit is the target itself
    file = write_file(trained | {"calibration": str(calibration)})
    after = evaluated(run, file, questions, tmp_path / "1", "--fixed-exits", "--beside", str(draft))
    result = run("generate", "the thing", "-f", file, "--exit-layer", 2, "--max-tokens", 20)
    assert result.exit_code == 0, result.output
    for report in (before, after):
        arms = report["results"]["overall"]
        exits = ["s2d", "s2d, no suffix lookup", "exit 2", "exit 4"]
        assert list(arms)[:5] == ["target-only", *exits]
        assert {arm["identical"] for arm in arms.values()} == {1.0}
        assert set(report["results"]) == {"qa", "mt_bench", "overall"}
    assert list(after["results"]["overall"])[5:] == ["draft: exit 4"]
    rates = [r["results"]["overall"]["exit 2"]["acceptance_rate"] for r in (before, after)]
    assert rates[1] > rates[0] + 0.04
    table = (tmp_path / "1" / "results.md").read_text()
    assert "| exit 2 |" in table
    for name in ("speedup.png", "acceptance.png"):
        assert (tmp_path / "1" / name).stat().st_size > 1000


def test_layers_are_found(write_file: WriteFile, run: Run, prompts: Path, tmp_path: Path) -> None:
    model = tiny_model("llama", seed=5, num_layers=4)
    model.model.layers[1].self_attn.o_proj.weight.mul_(1e-3)
    model.model.layers[1].mlp.down_proj.weight.mul_(1e-3)
    args = one_target(save_tiny(tmp_path / "family", model))
    rows, draft, file = tmp_path / "rows.jsonl", tmp_path / "draft", write_file(args)
    options = ["--prompts", prompts, "--number", 24, "--max-tokens", 40, "--max-context", 128]
    result = run("data", "answers", rows, "-f", file, *options)
    assert result.exit_code == 0, result.output
    options = ["--rows", rows, "--exits", 3, "--keep-layers", 3, "--epochs", 1, "--mlp-size", 16]
    result = run("train", draft, "-f", file, *options)
    assert result.exit_code == 0, result.output
    assert "the base's layers 0, 2, 3" in result.output
    assert json.loads((draft / "draft.json").read_text())["layers"] == [0, 2, 3]
    file = write_file(args | {"draft": args["draft"] | {"trained": str(draft)}})
    result = run("generate", "the thing", "-f", file, "--max-tokens", 20)
    assert result.exit_code == 0, result.output
    counts = re.search(r"accepted\s+(\d+) of (\d+) drafted", result.stderr)
    assert counts is not None
    assert int(counts[1]) > 0


Words = Callable[[Path, Path], list[object]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "x", "--rows", "none.jsonl", "--exits", "2,4"], "none.jsonl"),
        (["train", "x", "--rows", "none.jsonl", "--exits", "two"], "commas"),
        (["train", "x", "--rows", "r", "--exits", "2", "--method", "magic"], "heads, lora, full"),
        (
            ["train", "x", "--rows", "r", "--exits", "2", "--layers", "0,1", "--keep-layers", "3"],
            "give one of the two",
        ),
        (["data", "answers", "x", "--prompts", "nowhere"], "general, code"),
        (["data", "answers", "x", "-t", "nobody"], "nobody"),
        (["data", "text", "x", "nothing.txt"], "nothing.txt"),
        (["eval", "x", "--prompts", "nothing.jsonl"], "question_id"),
        (["eval", "x", "--prompts", "p", "--url", "http://x", "--fixed-exits"], "--url"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    own_args: Args,
    write_file: WriteFile,
    run: Run,
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = write_file(own_args)
    monkeypatch.chdir(tmp_path)
    result = run(*words, "-f", file)
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
