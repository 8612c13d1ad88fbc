import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from s2d_serve.config import DraftConfig, SpeculationConfig
from s2d_serve.engine.assemble import load_drafter
from s2d_serve.engine.draft import SortedDraft
from s2d_serve.engine.messages import SequenceStart
from s2d_serve.speculation.exits import NEVER, ExitPolicy
from s2d_serve.speculation.params import SamplingParams
from s2d_serve.training.calibration import (
    LENGTHS,
    Costs,
    Policy,
    Table,
    best_with,
    fixed_exits,
    measure_costs,
    observe,
    search,
    tokens_per_s,
)
from s2d_serve.training.rows import Row


def nothing(done: int, total: int) -> None:
    """No progress is shown."""


def drawn_table(acceptance: tuple[float, ...], num_tokens: int = 600) -> Table:
    """Exits that agree so often, and are sure of it half the time they agree."""
    drawn = torch.Generator().manual_seed(4)
    agrees = torch.rand(num_tokens, len(acceptance), generator=drawn) < torch.tensor(acceptance)
    sure = torch.rand(num_tokens, len(acceptance), generator=drawn)
    confidence = torch.where(agrees, 0.5 + sure / 2, sure * 0.6)
    return Table(agrees, confidence, (0, num_tokens // 2, num_tokens))


def flat(segments: tuple[float, ...], verify_s: float = 1.0) -> Costs:
    nothing_more = (0.0,) * len(segments)
    return Costs(segments, nothing_more, nothing_more, (verify_s,) * (LENGTHS[-1] + 1))


@pytest.fixture
def draft(folder: Path) -> SortedDraft:
    config = DraftConfig(
        source=str(folder), dtype="float32", num_threads=0, exit_layers=(2, 4), max_context=256
    )
    before = torch.get_num_threads()
    made = load_drafter(config, {"target": SpeculationConfig()})[0].draft
    torch.set_num_threads(before)
    return made


def test_what_is_observed_is_what_would_be_drafted(draft: SortedDraft, rows: list[Row]) -> None:
    row = rows[0]
    num_learned = len(row.token_ids) - row.num_prompt_tokens
    table = observe(draft, rows[:3])
    assert table.offsets == tuple(
        itertools.accumulate((len(r.token_ids) - r.num_prompt_tokens for r in rows[:3]), initial=0)
    )
    for exit_index, policy in enumerate((ExitPolicy(()), ExitPolicy((NEVER,)))):
        for place in (0, num_learned // 2, num_learned - 1):
            length = row.num_prompt_tokens + place
            known = row.token_ids[: length - 1]
            start = SequenceStart("s", 0, known, len(known), SamplingParams(temperature=0.0), 9)
            draft.open(start, policy)
            draft.prefill(["s"])
            assert draft.commit("s", length - 1, row.token_ids[length - 1 : length])
            (token_id,) = draft.propose({"s": 1}, [])["s"].token_ids
            draft.close("s")
            assert table.agrees[place, exit_index] == (token_id == row.token_ids[length])
    assert table.agrees[:, 1].all()  # the whole draft is the target
    assert 0 < table.agrees[:, 0].float().mean() < 1
    assert ((table.confidence > 0) & (table.confidence <= 1)).all()


def test_a_perfect_draft_is_worth_its_length() -> None:
    table = Table(torch.ones(110, 1, dtype=torch.bool), torch.ones(110, 1), (0, 110))
    found = best_with(table, flat((0.01,)), ())
    assert found.policy.max_draft_tokens == LENGTHS[-1] == 10
    assert found.speedup == pytest.approx(11 / (1 + 10 * 0.01))


def test_speed_is_what_playing_by_hand_gives() -> None:
    agrees = torch.tensor([[True], [False], [True], [True], [True], [False]])
    table = Table(agrees, torch.tensor([[0.9], [0.1], [0.9], [0.9], [0.9], [0.9]]), (0, 6))
    costs = Costs((0.1,), (0.0,), (0.05,), tuple(1 + 0.2 * n for n in range(LENGTHS[-1] + 1)))
    # Of length 2, going on at 0.5: [0, 1 unsure] commits 2; [2, 3] commits 3; [5] commits 1.
    seconds = (2 * 0.15 + 1.4) + (2 * 0.15 + 1.4) + (0.15 + 1.2)
    best = best_with(table, costs, ())
    assert best.speedup >= 6 / seconds - 1e-9
    assert tokens_per_s(table, costs, Policy((), 0.5, 2)) == pytest.approx(6 / seconds)


def test_what_a_segment_missed_is_read_later() -> None:
    """Of length 2, exit 0 where it is sure: at 0, 1, 3 and 4; exit 1 at 2."""
    agrees = torch.tensor([[True, True]] * 6)
    sure = torch.tensor([[0.9, 1.0], [0.9, 1.0], [0.1, 1.0], [0.9, 1.0], [0.9, 1.0], [0.1, 1.0]])
    costs = replace(flat((0.1, 0.2)), more_s=(0.01, 0.03))
    # Commits 0, 1, 2 and 3, 4, 5: segment 0 reads two tokens at 3, after a round that was right
    # throughout, and segment 1 never runs.
    shallow = tokens_per_s(Table(agrees, sure, (0, 6)), costs, Policy((0.5,), 0.0, 2))
    assert shallow == pytest.approx(6 / (2 + 4 * 0.1 + 0.01))
    # Of length 3: 0, 1 and 2, at which segment 1 reads two more, then 3; 4, 5 with four more at 5.
    deeper = tokens_per_s(Table(agrees, sure, (0, 6)), costs, Policy((0.5,), 0.0, 3))
    seconds = 2 + (3 * 0.1 + 0.2 + 2 * 0.03) + (2 * 0.1 + 0.01 + 0.2 + 2 * 0.03)
    assert deeper == pytest.approx(6 / seconds)


def test_what_was_wrong_is_not_read_again() -> None:
    agrees = torch.tensor([[True], [False], [True], [True]])
    table = Table(agrees, torch.ones(4, 1), (0, 4))
    costs = replace(flat((0.1,)), more_s=(0.01,))
    # 0, 1 wrong, commits two; 2, 3 commits two.
    assert tokens_per_s(table, costs, Policy((), 0.0, 2)) == pytest.approx(4 / (2 + 4 * 0.1))


def test_the_best_policy_is_never_behind_a_fixed_exit() -> None:
    table = drawn_table((0.4, 0.8))
    for segments in ((0.02, 0.05), (0.02, 0.9), (0.3, 0.4)):
        costs = flat(segments)
        best = search(table, costs, nothing)
        singles = fixed_exits(table, costs)
        assert best.speedup >= max(found.speedup for found in singles.values())
        assert best == search(table, costs, nothing)


def test_costs_decide_how_deep_the_draft_goes() -> None:
    table = drawn_table((0.5, 0.85))
    dear = search(table, flat((0.02, 1.5)), nothing)
    cheap = search(table, flat((0.02, 0.02)), nothing)
    assert dear.policy.thresholds == ()
    assert len(cheap.policy.thresholds) == 1


def test_a_draft_that_cannot_pay_is_said_not_to(draft: SortedDraft) -> None:
    table = drawn_table((0.02, 0.03))
    assert search(table, flat((1.0, 1.0)), nothing).speedup < 1


def test_costs_are_measured(draft: SortedDraft) -> None:
    costs = measure_costs(draft, draft.trunk)
    assert len(costs.segment_s) == len(costs.more_s) == len(costs.head_s) == 2
    assert len(costs.verify_s) == LENGTHS[-1] + 1
    assert all(0 < s < 1 and math.isfinite(s) for s in (*costs.segment_s, *costs.verify_s))
