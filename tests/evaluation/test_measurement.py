import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from s2d_serve.api.speculation import SpeculationSummary
from s2d_serve.errors import ConfigError, UnavailableError
from s2d_serve.evaluation.arms import HttpArm, Run, Task
from s2d_serve.evaluation.measurement import OVERALL, Measurement
from s2d_serve.evaluation.questions import Question, read_questions
from s2d_serve.evaluation.report import markdown, write_report
from s2d_serve.speculation.params import SamplingParams
from s2d_serve.speculation.statistics import SpeculationStatistics

QUESTIONS = [Question("1", "writing", "a"), Question("2", "qa", "b"), Question("3", "stem", "c")]
ABOUT = {"machine": "none"}


@dataclass(slots=True)
class FakeArm:
    """Answers with ten tokens in a fixed time for each task."""

    seconds: dict[str, float]
    wrong: Sequence[str] = ()
    statistics: SpeculationStatistics = field(default_factory=SpeculationStatistics)
    calls: list[str] = field(default_factory=list)

    def run(self, task: Task) -> Run:
        self.calls.append(task.key)
        output = (0,) if task.key in self.wrong else (1, 2)
        return Run(output, 10, self.seconds[task.key], self.statistics)


def task(key: str) -> Task:
    return Task(key, key, (1,), SamplingParams(temperature=0.0), 10)


def measured() -> Measurement:
    counts = SpeculationStatistics()
    counts.record(3, 2, (4, 4, 12))
    arms = {
        "target-only": FakeArm({"1": 2.0, "2": 2.0, "3": 6.0}),
        "s2d": FakeArm({"1": 1.0, "2": 4.0, "3": 2.0}, wrong=("2",), statistics=counts),
    }
    measurement = Measurement()
    measurement.take(arms, [task(q.key) for q in QUESTIONS], repeats=2)
    assert arms["s2d"].calls == ["3", "1", "2", "3", "1", "2", "3"]  # the first to warm up
    return measurement


def test_speedups_are_ratios_within_each_category() -> None:
    results = measured().results(QUESTIONS)
    assert set(results) == {"mt_bench", "qa", OVERALL}
    chat = results["mt_bench"]["s2d"]
    assert chat.speedup == pytest.approx(8 / 3)
    assert chat.tokens_per_s == pytest.approx(20 / 3)
    assert results["qa"]["s2d"].speedup == 0.5
    whole = results[OVERALL]["s2d"]
    assert whole.identical == pytest.approx(2 / 3)
    assert whole.num_prompts == 3
    assert whole.mean_accepted_tokens == 3
    assert whole.acceptance_rate == pytest.approx(2 / 3)
    assert (whole.accepted_by_position, whole.drafted_by_position) == ((6, 6, 0), (6, 6, 6))
    assert whole.exit_counts == {4: 12, 12: 6}
    assert math.isnan(results[OVERALL]["target-only"].acceptance_rate)
    assert results[OVERALL]["target-only"].speedup == 1


def test_the_report_is_written_for_programs_and_people(tmp_path: Path) -> None:
    results = measured().results(QUESTIONS)
    write_report(results, ABOUT, tmp_path / "report")
    loaded = json.loads((tmp_path / "report" / "results.json").read_text())
    assert loaded["results"]["qa"]["s2d"]["speedup"] == 0.5
    table = markdown(results, ABOUT)
    assert "| s2d | 2.67 / 3.00 | 0.50 / 3.00 |" in table
    assert "2 of 3" in table
    for name in ("speedup.png", "acceptance.png"):
        assert (tmp_path / "report" / name).read_bytes()[:4] == b"\x89PNG"


def test_questions_are_chosen_by_category(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    lines = [
        {"question_id": i, "category": "qa" if i % 2 else "rag", "turns": [f"q{i}", "more"]}
        for i in range(10)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert len(read_questions(path)) == 10
    chosen = read_questions(path, ["qa"], 2)
    assert [q.text for q in chosen] == ["q1", "q5"]
    with pytest.raises(ConfigError, match="no category 'code'"):
        read_questions(path, ["code"])
    path.write_text('{"question_id": 1}')
    with pytest.raises(ConfigError, match="turns"):
        read_questions(path)


def test_a_service_is_asked_and_its_refusal_is_told() -> None:
    asked = []

    def post(url: str, json: dict[str, object], timeout: float) -> httpx.Response:
        asked.append((url, json))
        if json["model"] == "nobody":
            return httpx.Response(404, text="no such model")
        choice = {"message": {"content": "text"}}
        counts = SpeculationSummary(7, 2, 5, 4, (0, 1, 1), {12: 4})
        totals = {"usage": {"completion_tokens": 5}, "metrics": counts.to_body()}
        return httpx.Response(200, json={"choices": [choice], **totals})

    run = HttpArm("http://here", "tiny", True, post).run(task("1"))
    assert (run.output, run.num_tokens) == ("text", 5)
    assert run.statistics.mean_accepted_tokens == 2.5
    assert run.statistics.exit_counts == {12: 4}
    url, body = asked[0]
    assert url == "http://here/v1/chat/completions"
    assert body["speculation"] == {"enabled": True}
    with pytest.raises(UnavailableError, match="404"):
        HttpArm("http://here", "nobody", True, post).run(task("1"))
