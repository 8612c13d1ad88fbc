import io
import re
from pathlib import Path
from typing import Any

import pytest

from s2d_serve.cli import generation
from s2d_serve.cli.generation import DraftUse, Job
from s2d_serve.deployment_file import load_deployment_file
from s2d_serve.errors import ConfigError, RequestError, UnknownModelError
from s2d_serve.speculation.params import SamplingParams
from tests.cli.conftest import Args, Run, WriteFile
from tests.engine.tiny import save_tiny, tiny_model, tiny_tokenizer

PROMPT = "the thing stops"


@pytest.fixture
def file(args: Args, write_file: WriteFile) -> Path:
    return write_file(args)


def engine(file: Path, draft_use: DraftUse | None = None, target: str = "tiny") -> Any:
    return generation.load(load_deployment_file(file).config, target, draft_use or DraftUse())


def job(**changes: Any) -> Job:
    return Job(PROMPT, False, changes.pop("params", SamplingParams(temperature=0.0)), **changes)


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0.0), SamplingParams(0.8, top_p=0.95, seed=7)]
)
def test_text_is_the_same_with_and_without_draft(file: Path, params: SamplingParams) -> None:
    texts, reports = [], []
    for draft_use in (
        DraftUse(enabled=False),
        DraftUse(),
        DraftUse(exit_layer=2),
        DraftUse(max_draft_tokens=1),
    ):
        output = io.StringIO()
        loaded = engine(file, draft_use)
        reports.append(generation.stream(loaded, job(params=params, max_tokens=40), output))
        texts.append(output.getvalue())
    assert len(set(texts)) == 1
    assert texts[0].endswith("\n")
    alone, adaptive, shallow, short = (report.statistics for report in reports)
    assert alone.num_draft_tokens == 0
    for counts in (adaptive, shallow, short):
        assert counts.num_accepted_tokens > 0
        assert counts.num_committed_tokens == alone.num_committed_tokens == 40
        assert counts.num_rounds < 40
    assert set(adaptive.exit_counts) == {2, 4}
    assert set(shallow.exit_counts) == {2}
    assert len(short.drafted_by_position) == 1
    assert all(0 < report.ttft_s <= report.total_s for report in reports)


def test_command_streams_text_and_reports(file: Path, run: Run) -> None:
    options = ["generate", PROMPT, "-f", file, "--max-tokens", 30, "--seed", 5, "--temperature", 1]
    with_draft, alone = run(*options), run(*options, "--no-speculation")
    assert with_draft.exit_code == alone.exit_code == 0
    assert with_draft.stdout == alone.stdout
    assert len(with_draft.stdout) > 20
    counts = re.search(r"accepted\s+(\d+) of (\d+) drafted", with_draft.stderr)
    assert counts is not None
    assert 0 < int(counts[1]) <= int(counts[2])
    for text in ("30 out; cut at the limit", "tokens/s", "(MAT)", "exit 2: ", "seed"):
        assert text in with_draft.stderr
    assert re.search(r"speculation\s+off", alone.stderr)


def test_prompt_goes_through_the_template_or_not(file: Path, run: Run) -> None:
    tokenizer = tiny_tokenizer()
    raw = len(tokenizer(PROMPT)["input_ids"])
    messages = [{"role": "user", "content": PROMPT}]
    template = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    chat = len(tokenizer.encode(str(template)))
    assert raw < chat
    options = ["generate", "-", "-f", file, "--max-tokens", 2]
    assert f"{chat} in" in run(*options, input=PROMPT).stderr
    assert f"{raw} in" in run(*options, "--raw", input=PROMPT).stderr


def test_target_is_the_first_or_the_one_named(file: Path, run: Run) -> None:
    options = ["generate", PROMPT, "-f", file, "--max-tokens", 5]
    assert "drafted" in run(*options).stderr
    assert re.search(r"speculation\s+off", run(*options, "-t", "tiny-alone").stderr)


def test_stop_string_ends_text_and_counts(file: Path) -> None:
    output = io.StringIO()
    generation.stream(engine(file), job(max_tokens=40), output)
    whole = output.getvalue()[:-1]
    stop = whole[6:8]
    output = io.StringIO()
    report = generation.stream(engine(file), job(max_tokens=40, stop=(stop,)), output)
    assert output.getvalue() == whole[: whole.index(stop)] + "\n"
    assert report.finish_reason == "stop"
    assert 0 < report.statistics.num_committed_tokens < 40


def test_interrupt_ends_cleanly(file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(io.StringIO):
        def flush(self) -> None:
            if len(self.getvalue()) > 3:
                raise KeyboardInterrupt

    report = generation.stream(engine(file), job(max_tokens=40), Impatient())
    assert report.finish_reason == "interrupted"
    assert 0 < report.statistics.num_committed_tokens < 40
    monkeypatch.setattr(generation, "stream", lambda *_: report)
    result = run("generate", PROMPT, "-f", file)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


def test_what_does_not_fit_is_refused(file: Path, run: Run) -> None:
    with pytest.raises(RequestError, match="exceed the target's max_context of 256"):
        generation.stream(engine(file), job(max_tokens=250), io.StringIO())
    result = run("generate", "the thing " * 200, "-f", file)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""
    with pytest.raises(RequestError, match="no tokens"):
        generation.stream(engine(file), Job("", True, SamplingParams()), io.StringIO())


def test_wrong_choices_are_refused(file: Path, run: Run) -> None:
    with pytest.raises(UnknownModelError, match=r"'big'; the file has tiny, tiny-alone"):
        engine(file, target="big")
    with pytest.raises(ConfigError, match=r"--exit-layer 3: the draft's exits are \[2, 4\]"):
        engine(file, DraftUse(exit_layer=3))
    assert run("generate", PROMPT, "-f", file, "-t", "big").exit_code == 1
    assert run("generate", PROMPT, "-f", file, "--top-p", 2).exit_code == 2
    assert run("generate", PROMPT, "-f", file, "--max-tokens", 0).exit_code == 2


def test_draft_of_another_tokenizer_is_refused(
    args: Args, write_file: WriteFile, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["and"])
    model = tiny_model("llama", seed=1, padded_vocab_size=512)
    args["draft"]["source"] = str(save_tiny(tmp_path / "other", model, tokenizer))
    with pytest.raises(ConfigError, match=r"'and'.*use --no-speculation"):
        engine(write_file(args))


def test_model_without_template_needs_raw(
    args: Args, write_file: WriteFile, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    folder = save_tiny(tmp_path / "plain", tiny_model("llama", seed=1), tokenizer)
    args["targets"]["tiny-alone"]["source"] = str(folder)
    loaded = engine(write_file(args), target="tiny-alone")
    with pytest.raises(RequestError, match="use --raw"):
        generation.stream(loaded, job(), io.StringIO())
    report = generation.stream(
        loaded, Job(PROMPT, True, SamplingParams(), max_tokens=3), io.StringIO()
    )
    assert report.num_prompt_tokens == len(tokenizer(PROMPT)["input_ids"])
