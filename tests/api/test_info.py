import pytest
from openai.types import Model

from s2d_serve.api.info import (
    DraftCard,
    ModelCard,
    ReplicaCard,
    State,
    WeightsCard,
    detokenize_body,
    is_ready,
    model_body,
    models_body,
    ready_body,
    tokenize_body,
    version_body,
)

WEIGHTS = WeightsCard(name="SmolLM2-135M.gguf", sha256="ab" * 32, dtype="bfloat16")
CARD = ModelCard(
    id="smollm2-135m",
    created=1700000000,
    max_model_len=2048,
    state="ready",
    weights=WEIGHTS,
    draft=DraftCard(WEIGHTS, exit_layers=(6, 12), replicas=(ReplicaCard(0, 16),)),
    replicas=(ReplicaCard(3, 8), ReplicaCard(0, 8)),
)


def test_a_model_says_what_it_runs() -> None:
    body = model_body(CARD)
    weights = {"name": "SmolLM2-135M.gguf", "sha256": "ab" * 32, "dtype": "bfloat16"}
    assert body == {
        "id": "smollm2-135m",
        "object": "model",
        "created": 1700000000,
        "owned_by": "s2d-serve",
        "max_model_len": 2048,
        "s2d": {
            "state": "ready",
            "weights": weights,
            "draft": {
                **weights,
                "exit_layers": [6, 12],
                "replicas": [{"sequences": 0, "slots": 16}],
            },
            "replicas": [{"sequences": 3, "slots": 8}, {"sequences": 0, "slots": 8}],
            "calibration": None,
        },
    }
    assert Model.model_validate(body).id == "smollm2-135m"


def test_a_model_without_a_draft() -> None:
    alone = ModelCard("m", 1, 16, "loading", WeightsCard("folder", None, "float32"), None)
    ours = model_body(alone)["s2d"]
    assert isinstance(ours, dict)
    assert ours["draft"] is None
    assert ours["weights"]["sha256"] is None


def test_models_are_a_list() -> None:
    assert models_body([CARD]) == {"object": "list", "data": [model_body(CARD)]}
    assert models_body([]) == {"object": "list", "data": []}


def test_the_other_bodies_have_vllms_shape() -> None:
    assert tokenize_body((1, 2, 3), 2048) == {
        "tokens": [1, 2, 3],
        "count": 3,
        "max_model_len": 2048,
    }
    assert detokenize_body("Hi") == {"prompt": "Hi"}
    assert version_body("0.1.0") == {"version": "0.1.0"}


@pytest.mark.parametrize(
    ("states", "ready"),
    [
        (["ready", "idle"], True),
        (["ready", "loading"], False),
        (["unavailable", "ready"], False),
    ],
)
def test_readiness_is_that_of_all_targets(states: list[State], ready: bool) -> None:
    targets = {f"target-{i}": state for i, state in enumerate(states)}
    assert is_ready(targets) is ready
    assert ready_body(targets, "ready") == {"ready": ready, "targets": targets, "draft": "ready"}


def test_a_dead_draft_is_told_but_costs_only_time() -> None:
    body = ready_body({"m": "ready"}, "unavailable")
    assert body["ready"] is True
    assert body["draft"] == "unavailable"
    assert ready_body({"m": "ready"}, None)["draft"] is None
