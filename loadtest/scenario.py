"""What a load test does: a YAML file, validated."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadtest.options import SCENARIOS

Traffic = Literal["separate", "even", "skewed"]
"""separate: one target at a time; even, skewed: all at once, in equal shares or the first most."""


class ScenarioError(ValueError):
    """A scenario or an option that cannot be used; the message is one line."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Closed(_Part):
    """So many clients, each of which asks again as soon as it was answered."""

    kind: Literal["closed"]
    levels: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Clients at once."""
    requests_per_client: int = Field(ge=1)
    min_requests: int = Field(8, ge=1)
    """Requests of a level at least, where few clients would send fewer."""
    pairs_per_batch: int = Field(3, ge=1)
    """Pairs that one process of AIPerf does straight one after the other. The other levels come
    between batches.
    """

    def num_requests(self, level: float) -> int:
        """Requests of one run at this level, warm-up not counted."""
        return max(self.min_requests, round(level) * self.requests_per_client)


class Poisson(_Part):
    """Requests arrive at random whether earlier ones were answered or not."""

    kind: Literal["poisson"]
    levels: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    """Mean arrivals per second."""
    duration_s: float = Field(gt=0)
    min_requests: int = Field(8, ge=2)
    """Arrivals of a level at least; a slow one then takes longer than duration_s."""


class Burst(_Part):
    """So many requests at the same moment, again and again."""

    kind: Literal["burst"]
    levels: tuple[Annotated[int, Field(ge=2)], ...] = Field(min_length=1)
    """Requests of a burst."""
    bursts: int = Field(ge=1)
    every_s: float = Field(gt=0)


Load = Annotated[Closed | Poisson | Burst, Field(discriminator="kind")]


class Cancel(_Part):
    """Clients that hang up."""

    share: float = Field(gt=0, lt=1)
    after_s: float = Field(ge=0)
    """Seconds from the request to the hang-up."""


class Slo(_Part):
    """What a request must keep to count for goodput."""

    ttft_s: float = Field(gt=0)
    tpot_s: float = Field(gt=0)


class Bounds(_Part):
    """Where a run turns red."""

    max_schedule_lag_s: float = Field(0.005, gt=0)
    """99th percentile, open loop: later than that, it is no open loop."""
    max_client_cpu: float = Field(0.8, gt=0, le=1)
    """Of the load generator: its busiest process, of one core; all, of the machine's cores."""
    min_achieved_rate: float = Field(0.99, gt=0, le=1)
    """Of the arrivals per second that were asked for, open loop."""
    max_error_share: float = Field(0.01, ge=0, lt=1)
    """Requests answered by an error, 429 included."""
    max_null_share: float = Field(0.5, gt=0, le=1)
    """Output tokens per second over what the generator takes from the null server."""


class Scenario(_Part):
    """A load test. Every level runs with speculation off and on, in turn, `repeats` times."""

    description: str
    load: Load
    traffic: tuple[Traffic, ...] = ("separate",)
    targets: tuple[str, ...] | Literal["first", "all"] = "all"
    """Names; first, all: of those that the service lists."""
    repeats: int = Field(3, ge=1)
    """Pairs of runs at each level; three and more give intervals."""
    rehearse: bool = False
    """A pass over all levels with speculation comes first and is not counted: what to draft is
    learnt while serving, for each number of sequences.
    """
    warmup_requests: int = Field(2, ge=0)
    """With speculation, before each batch of runs; not counted."""
    max_tokens: int = Field(64, ge=2)
    """The cap; answers end where the model ends them."""
    temperature: float = Field(0, ge=0, le=2)
    seed: int = 0
    """Of prompts' order, arrivals and sampling: both arms of a pair see the same."""
    cancel: Cancel | None = None
    slo: Slo = Slo(ttft_s=2.0, tpot_s=0.2)
    text_prompts: int = Field(4, ge=0)
    """Prompts of each target asked once with and once without speculation: the same text?"""
    bounds: Bounds = Bounds()

    @property
    def is_open(self) -> bool:
        """Whether requests are sent on schedule, answered or not."""
        return self.load.kind != "closed"


def load_scenario(name: str, changes: Mapping[str, Any] | None = None) -> Scenario:
    """The scenario of this name, or of this file.

    Args:
        name: smoke, sweep, ...; or a path to a YAML file.
        changes: values that replace the file's, by dotted name (`load.levels`); None is no change.

    Raises: ScenarioError, in one line.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else SCENARIOS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in SCENARIOS.glob("*.yaml")))
        raise ScenarioError(f"no scenario {name!r}: there are {known}, or a path to a .yaml file")
    try:
        fields = yaml.safe_load(path.read_text("utf-8"))
        if not isinstance(fields, dict):
            raise ScenarioError(f"{path}: a scenario is a mapping with description and load")
        for dotted, value in (changes or {}).items():
            if value is not None:
                _replace(fields, dotted.split("."), value)
        return Scenario.model_validate(fields)
    except yaml.YAMLError as error:
        raise ScenarioError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise ScenarioError(f"{path}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """Where the first problem is and what it is, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the whole"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {first['msg']}, not {first['input']!r}{more}"


def _replace(fields: dict[str, Any], names: list[str], value: Any) -> None:
    *outer, last = names
    for name in outer:
        fields = fields.setdefault(name, {})
    fields[last] = value
