"""What was measured: what a run's folder keeps, and report.json."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from loadtest.plan import Arm, Cell
from loadtest.scenario import Scenario, Traffic

Status = Literal["ok", "429", "5xx", "cancelled", "failed"]
"""cancelled: by this client, as the scenario wants it; failed: everything else."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Speculation(_Value):
    """Counts that the service sent with responses; they add up."""

    rounds: int = 0
    committed: int = 0
    """Tokens of these rounds, the target's own included."""
    steps: int = 0
    """Rounds with a proposal."""
    drafted: int = 0
    accepted: int = 0
    exits: dict[str, int] = {}
    """Draft tokens by the exit layer that gave them; 0: suffix lookup."""
    drafted_by_position: tuple[int, ...] = ()
    accepted_by_position: tuple[int, ...] = ()


class Request(_Value):
    """One request, as its client saw it. Latencies count from the intended start."""

    key: str = ""
    """The same for the requests of a pair of runs that are the same."""
    target: str
    category: str
    status: Status
    error: str | None = None
    start_s: float
    """Unix time."""
    end_s: float
    lag_s: float | None = None
    """How much later than intended it was sent, over the least late one. None: closed loop."""
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    itl_s: tuple[float, ...] = ()
    """Gaps between chunks; one chunk may bring several tokens."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    text_digest: str | None = None
    """Of the answer, whole."""
    speculation: Speculation | None = None


class ClientCpu(_Value):
    """What the load generator took while its requests ran."""

    cores: float
    """All its processes, in cores, where they took most."""
    busiest: float
    """The busiest one, of one core, where it took most."""


class CellResult(_Value):
    """One run."""

    cell: Cell
    asked_rate: float | None
    """Arrivals per second of the schedule. None: closed loop."""
    requests: tuple[Request, ...]
    client_cpu: ClientCpu | None
    """While its batch ran."""


class Watched(_Value):
    """What the service said of itself while a batch ran, to its end or not."""

    counters: dict[str, float]
    """What those at /metrics grew by. Empty: it has none."""
    replicas: tuple[tuple[float, dict[str, int]], ...]
    """Unix time, replicas of each model that are ready."""


class Spread(_Value):
    """Of a latency in seconds, over all requests of all repeats."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


class Interval(_Value):
    """A mean with its 95 % confidence interval over repeats; None with fewer than two."""

    mean: float
    low: float | None = None
    high: float | None = None
    repeats: tuple[float, ...]


class LevelResult(_Value):
    """One target at one level of load, with speculation on or off; all repeats."""

    target: str
    traffic: Traffic
    level: float
    arm: Arm
    requests: dict[Status, int]
    ttft_s: Spread | None
    tpot_s: Spread | None
    itl_s: Spread | None
    e2e_s: Spread | None
    output_tokens_per_s: Interval
    mean_e2e_s: Interval | None
    """Of the repeats that had an answer. None: none had."""
    requests_per_s: Interval
    goodput_per_s: Interval
    """Requests per second that kept the SLO."""
    speculation: Speculation
    acceptance_rate: float | None
    """Accepted over drafted."""
    mean_accepted_tokens: float | None
    """MAT: committed over rounds; 1.0 is the target alone."""
    mean_acceptance_length: float | None
    """vLLM's: 1 + accepted over rounds with a proposal."""


class Speedup(_Value):
    """How much faster with speculation, by pairs of runs: of tokens per second in a closed loop of
    one target; else, where arrivals or other targets set the rate, of end-to-end times.
    """

    target: str
    traffic: Traffic
    level: float
    ratio: Interval
    is_idle: tuple[bool, ...]
    """By pair: next to nothing was drafted, so that only the machine made its runs differ."""

    @property
    def pairs(self) -> list[tuple[float, bool]]:
        """Ratio of each pair of runs, and whether it was idle."""
        return list(zip(self.ratio.repeats, self.is_idle, strict=True))


class Gate(_Value):
    """One thing that must hold for the figures to mean something."""

    name: str
    status: Literal["passed", "failed", "not checked"]
    says: str


class Verdict(_Value):
    """What the gates say together."""

    passed: bool
    gates: tuple[Gate, ...]


class Texts(_Value):
    """Whether a target says the same with speculation on and off."""

    target: str
    dtype: str
    prompts: int
    differing: int
    pairs_under_load: int = 0
    """Requests of the runs that were answered in full both ways."""
    differing_under_load: int = 0


class Calibration(_Value):
    """The generator against a server that answers at once."""

    level: float
    """Clients at once."""
    requests_per_s: float
    output_tokens_per_s: float
    ttft_s: Spread
    client_cpu: ClientCpu | None


class About(_Value):
    """What was run, on what."""

    scenario_name: str
    scenario: Scenario
    url: str
    command: str
    commit: str | None
    aiperf: str | None
    started: str
    machine: dict[str, Any]
    """Of the client: CPU, cores, memory, Python."""
    models: tuple[dict[str, Any], ...]
    """As the service lists them."""
    prompts: str
    service_is_null: bool = False


class Report(_Value):
    """report.json."""

    schema_version: Literal[4] = 4
    about: About
    complete: bool
    """False: interrupted, out of time, or ended by an error."""
    ended_by: str | None = None
    """The error that ended it, if one did."""
    runs: str = Field(description="as 6 of 6")
    verdict: Verdict
    texts: tuple[Texts, ...]
    calibration: Calibration | None
    levels: tuple[LevelResult, ...]
    speedups: tuple[Speedup, ...]
    counters: dict[str, float] = {}
    """What the service's own counters grew by over all batches. Empty: it has none."""
    replicas: tuple[tuple[float, dict[str, int]], ...] = ()
    """Seconds from the first sample, replicas of each model that are ready."""
