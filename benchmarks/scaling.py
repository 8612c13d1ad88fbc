"""Replicas over time, while one target's crowd comes and goes and another's client notices nothing.

    python -m benchmarks.scaling scaling.png

Starts `serve run` with two SmolLM2 targets: one sleeps while nobody asks and grows to three
replicas, the other always has one, and one client. No crowd, one stream, many, one, none. Prints
when how many replicas were ready, what failed and which texts were wrong, and draws the timeline.
"""

import argparse
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from matplotlib.figure import Figure

from benchmarks.running import chat_body, repeating, running_service
from benchmarks.service import SOURCE
from loadtest.service import scrape

QUIET, CROWDED = "untouched", "crowded"
SCALE = {"min": 0, "max": 3, "target_load": 0.7, "upscale_delay_s": 2, "downscale_delay_s": 15}
MODEL = {"source": SOURCE, "dtype": "float32", "max_context": 512}
ARGS: dict[str, Any] = {
    "draft": {
        **MODEL,
        "dtype": "bfloat16",
        "quantization": "int4",
        "trained": "drafts/smollm2-135m",
    },
    "targets": {
        QUIET: {**MODEL, "num_threads": 1},
        CROWDED: {**MODEL, "num_threads": 1, "max_sequences": 4, "replicas": SCALE},
    },
}
QUESTION = "Count from one to thirty in words."
SLEEP_S = 240.0
"""In which the last replica must have gone."""


@dataclass(slots=True)
class Timeline:
    """What was seen, by seconds since the start."""

    started: float = field(default_factory=time.monotonic)
    replicas: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    """Ready ones of each target."""
    streams: list[tuple[float, int]] = field(default_factory=list)
    """Clients of the crowd, from a moment on."""
    answers: list[tuple[str, float, float]] = field(default_factory=list)
    """Target, end, tokens/s."""
    texts: dict[str, Counter[str]] = field(default_factory=dict)
    """What each target said, and how often."""
    errors: list[str] = field(default_factory=list)

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


def main() -> None:
    """Play the phases, print what happened, draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("plot", type=Path, help="the PNG to draw")
    parser.add_argument("--crowd", type=int, default=12, help="streams of the crowd at most")
    parser.add_argument("--phase-s", type=float, default=75.0, help="length of a phase")
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    with running_service(ARGS) as url, httpx.Client(base_url=url) as client:
        seen = Timeline()
        with (
            repeating(lambda _: ask(url, QUIET, options.tokens, seen)),
            repeating(lambda _: look(client, seen)),
        ):
            for size in (0, 1, options.crowd, 1, 0):
                seen.streams.append((seen.now(), size))
                with repeating(lambda _: ask(url, CROWDED, options.tokens, seen), size):
                    time.sleep(options.phase_s if size else 10)
            deadline = time.monotonic() + SLEEP_S
            while seen.replicas[-1][1].get(CROWDED, 0) and time.monotonic() < deadline:
                time.sleep(1)
        seen.streams.append((seen.now(), 0))
    draw(seen, options.plot)
    report(seen)


def ask(url: str, target: str, num_tokens: int, seen: Timeline) -> None:
    """One answer of exactly so many tokens; what it said and how fast is kept."""
    body = chat_body(target, QUESTION, num_tokens)
    try:
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        seen.errors.append(f"{seen.now():.0f} s, {target}: {error}")
        return
    text = answer.json()["choices"][0]["message"]["content"]
    seen.texts.setdefault(target, Counter())[text] += 1
    seen.answers.append((target, seen.now(), num_tokens / answer.elapsed.total_seconds()))


def look(client: httpx.Client, seen: Timeline) -> None:
    """Note the ready replicas; once a second."""
    if found := scrape(client):
        seen.replicas.append((seen.now(), found[1]))
    time.sleep(1)


def report(seen: Timeline) -> None:
    """Changes of the number of replicas, errors, texts."""
    last: dict[str, int] = {}
    for at_s, counts in seen.replicas:
        now = {target: counts.get(target, 0) for target in (QUIET, CROWDED)}
        if now != last:
            print(f"{at_s:6.0f} s  " + "  ".join(f"{t}: {n} ready" for t, n in now.items()))
            last = now
    print(f"errors: {len(seen.errors)}", *seen.errors, sep="\n")
    for target, texts in seen.texts.items():
        print(f"{target}: {texts.total()} answers, {len(texts)} different")
    num_texts = len({text for texts in seen.texts.values() for text in texts})
    print(f"both together: {num_texts} different")


def draw(seen: Timeline, path: Path) -> None:
    """Replicas and streams above, what the untouched target's client got below."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for target, colour in ((QUIET, "#767676"), (CROWDED, "#0072b2")):
        xs = [at_s for at_s, _ in seen.replicas]
        ys = [counts.get(target, 0) for _, counts in seen.replicas]
        above.step(xs, ys, where="post", color=colour, label=f"{target}: ready replicas")
    streams = above.twinx()
    xs, ys = [at_s for at_s, _ in seen.streams], [size for _, size in seen.streams]
    streams.fill_between(xs, ys, step="post", alpha=0.15, color="#d55e00")
    streams.set(ylabel="streams of the crowd (shaded)", ylim=(0, None))
    above.set(ylabel="replicas", ylim=(0, 3.5), yticks=range(4))
    above.legend(fontsize="small", loc="upper left")
    for target, colour in ((QUIET, "#767676"), (CROWDED, "#0072b2")):
        mine = [(at_s, speed) for name, at_s, speed in seen.answers if name == target]
        below.plot(*zip(*mine, strict=True), ".", color=colour, label=f"{target}: one answer")
    below.set(xlabel="seconds", ylabel="tokens/s", ylim=(0, None))
    below.legend(fontsize="small", loc="upper right")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
