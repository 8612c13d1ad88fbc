"""`s2d plan`: sizes that are known, what fits, and what is said where something does not."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

from benchmarks.memory import measure_in_process
from s2d_serve import cpu
from s2d_serve.cli import plan
from s2d_serve.cli.footprint import PlannedModel, planned_models, service_bytes
from s2d_serve.cli.plan import GB, Hardware, Placed
from s2d_serve.config import AppConfig
from s2d_serve.errors import S2DError
from tests.cli.conftest import Args, Run, WriteFile
from tests.engine.tiny import save_tiny, tiny_model
from tests.engine.tiny_gguf import write_gguf

VICUNA = Path(__file__).parents[2] / "deployments/vicuna.yaml"
CLUSTER = Hardware(gpu_bytes=80 * GB, gpus_per_node=8, host_bytes=64 * GB)

Shapes = dict[str, dict[str, Any]]
SHAPES: Shapes = {
    "llama-2-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "vicuna-13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "vicuna-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "sd2-draft": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 12,
        "num_attention_heads": 32,
    },
}

Folders = dict[str, str]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Folders that hold nothing but the config.json of a known model."""
    found = {}
    for name, shape in SHAPES.items():
        folder = tmp_path_factory.mktemp(name)
        common = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        }
        (folder / "config.json").write_text(json.dumps(common | shape))
        found[name] = str(folder)
    return found


Planned = Callable[..., PlannedModel]


@pytest.fixture
def planned(folders: Folders) -> Planned:
    """A target on GPUs, alone: planned("vicuna-7b", max_context=4096)."""

    def build(name: str, **settings: object) -> PlannedModel:
        target = {"source": folders[name], "device": "cuda", "num_gpus": 1, **settings}
        config = AppConfig.model_validate({"targets": {"target": target}})
        (model,) = models(config).values()
        return model

    return build


def models(config: AppConfig) -> dict[str, PlannedModel]:
    found = dict(planned_models(config, fetch=False))
    for model in found.values():
        if isinstance(model, S2DError):
            raise model
    return {name: m for name, m in found.items() if isinstance(m, PlannedModel)}


@pytest.mark.parametrize(
    ("name", "num_parameters", "kv_bytes_per_token"),
    [
        ("llama-2-70b", 68_976_648_192, 327_680),
        ("vicuna-13b", 13_015_864_320, 819_200),
        ("vicuna-7b", 6_738_415_616, 524_288),
        ("sd2-draft", 2_690_748_416, 196_608),
    ],
)
def test_known_sizes(
    planned: Planned, name: str, num_parameters: int, kv_bytes_per_token: int
) -> None:
    model = planned(name, max_sequences=3, max_context=1000)
    assert model.shape.num_parameters == num_parameters
    part = model.footprint()
    assert part.weights == 2 * num_parameters
    assert part.kv_cache == 3 * 1000 * kv_bytes_per_token
    assert planned(name, dtype="float32").footprint().weights == 4 * num_parameters


def test_ranks_split_layers_and_heads_but_neither_embedding_nor_head(planned: Planned) -> None:
    whole = planned("llama-2-70b").footprint()
    rank = planned("llama-2-70b", tensor_parallel_size=8).footprint()
    norms, matrices = (2 * 80 + 1) * 8192, 2 * 32000 * 8192
    kept = 2 * (norms + matrices)
    assert 8 * (rank.weights - kept) == whole.weights - kept
    assert rank.weights / GB == pytest.approx(18.16, abs=0.01)
    assert 8 * rank.kv_cache == whole.kv_cache
    assert rank.forward_pass < whole.forward_pass


def test_ranks_that_do_not_get_whole_heads_are_refused(planned: Planned) -> None:
    with pytest.raises(S2DError, match=r"tensor_parallel_size 16: .* 1, 2, 4, 8 divide both"):
        planned("llama-2-70b", tensor_parallel_size=16)


@pytest.mark.parametrize(
    ("settings", "gpu_bytes", "remedies"),
    [
        (
            {"max_context": 4096, "max_sequences": 64},
            80 * GB,
            {"max_context", "max_sequences"},
        ),
        ({"max_context": 4096}, 20 * GB, {"max_context", "max_sequences"}),
        ({"max_context": 4096, "tensor_parallel_size": 2}, 12 * GB, {"tensor_parallel_size"}),
        ({"dtype": "float32", "max_context": 256}, 24 * GB, {"dtype", "tensor_parallel_size"}),
        ({"max_context": 16, "max_sequences": 1}, 1 * GB, set()),
    ],
)
def test_each_remedy_alone_makes_it_fit(
    planned: Planned, settings: dict[str, Any], gpu_bytes: int, remedies: set[str]
) -> None:
    placed = Placed(planned("vicuna-7b", **settings), gpu_bytes)
    assert not placed.fits()
    found = dict(remedy.split(": ") for remedy in placed.remedies())
    assert remedies <= found.keys()
    for name, value in found.items():
        changed = {**settings, name: int(value) if value.isdigit() else value}
        assert Placed(planned("vicuna-7b", **changed), gpu_bytes).fits()
        if name in ("max_context", "max_sequences"):
            more = {**changed, name: int(value) + 1}
            assert not Placed(planned("vicuna-7b", **more), gpu_bytes).fits()


def vicuna_args(folders: Folders) -> Args:
    """The shipped file's `args` with folders in place of hub ids."""
    (app,) = yaml.safe_load(VICUNA.read_text("utf-8"))["applications"]
    args: Args = app["args"]
    args["draft"]["source"] = folders["sd2-draft"]
    targets = args["targets"]
    for target, folder in (
        ("vicuna-7b", "vicuna-7b"),
        ("vicuna-13b", "vicuna-13b"),
        ("llama-2-70b-chat", "llama-2-70b"),
    ):
        targets[target]["source"] = folders[folder]
        del targets[target]["revision"]
    return args


def test_the_papers_set_up_fits_80_gb_and_says_where(
    folders: Folders, write_file: WriteFile, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_file(vicuna_args(folders))
    result = run("plan", file)
    assert result.exit_code == 0, result.output
    assert "GPUs: 11 for all deployments. Each has 80 GB" in result.stdout
    assert "68.977e9" in result.stdout
    assert "assumed" in result.stdout
    small = run("plan", file, "--gpu-memory", 24)
    assert small.exit_code == 1
    assert "problem: vicuna-13b: a rank needs" in small.stdout
    assert "tensor_parallel_size: 4" in small.stdout
    assert "llama-2-70b-chat: a rank" not in small.stdout


class Hub:
    """A stand-in for the hub: where config.json is, or why it cannot be had."""

    answer: str | Exception = ""

    def metadata(self, url: str) -> None:
        self.url = url
        if isinstance(self.answer, Exception):
            raise self.answer

    def download(self, source: str, file: str, revision: str) -> str:
        assert self.url.endswith(f"/{source}/resolve/{revision}/{file}")
        assert isinstance(self.answer, str)
        return self.answer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """With an empty cache."""
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", hub.metadata)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.download)
    return hub


def test_the_papers_draft_is_still_to_be_pinned_and_the_rest_to_be_fetched(
    run: Run, hub: Hub
) -> None:
    hub.answer = RuntimeError("no connection\nand more of it")
    result = run("plan", VICUNA)
    assert result.exit_code == 1
    first, *others = result.stdout.splitlines()
    assert first.startswith("problem: draft: parsakaveh/SD2-SoFT-Draft: no such folder here")
    assert "needs a `revision`" in first
    assert len(others) == 3
    assert all("cannot be fetched (no connection); `hf download" in line for line in others)


def test_of_a_hub_id_config_json_is_all_that_is_fetched(
    folders: Folders, write_file: WriteFile, run: Run, hub: Hub
) -> None:
    hub.answer = str(Path(folders["vicuna-7b"]) / "config.json")
    target = {"source": "some/model", "revision": "a" * 40, "device": "cuda", "num_gpus": 1}
    file = write_file({"targets": {"target": target}})
    result = run("plan", file)
    assert result.exit_code == 0, result.output
    assert "6.738e9" in result.stdout
    assert hub.url.endswith("/config.json")


def test_doctor_fetches_nothing(write_file: WriteFile, run: Run, hub: Hub) -> None:
    hub.answer = AssertionError("the hub was asked")
    target = {"source": "some/model", "revision": "a" * 40}
    result = run("doctor", write_file({"targets": {"target": target}}))
    assert "1 models not counted" in result.stdout
    assert not hasattr(hub, "url")


def test_gpu_that_is_not_asked_for_is_a_problem(
    folders: Folders, write_file: WriteFile, run: Run
) -> None:
    target = {"source": folders["vicuna-7b"], "device": "cuda"}
    result = run("plan", write_file({"targets": {"target": target}}))
    assert result.exit_code == 1
    assert "problem: target: `num_gpus: 0` gives it no GPU" in result.stdout


@pytest.mark.parametrize(
    ("strategy", "num_gpus", "gpus_per_node", "nodes"),
    [
        ("PACK", 1, 8, (1, 1)),
        ("PACK", 1, 4, (2, 2)),
        ("PACK", 0.5, 4, (1, 1)),
        ("SPREAD", 1, 4, (2, 8)),
        ("STRICT_SPREAD", 1, 8, (8, 8)),
    ],
)
def test_nodes_of_a_replica(
    planned: Planned, strategy: str, num_gpus: float, gpus_per_node: int, nodes: tuple[int, int]
) -> None:
    settings = {"placement_strategy": strategy, "num_gpus": num_gpus, "tensor_parallel_size": 8}
    model = planned("llama-2-70b", **settings)
    assert plan._nodes(model, Hardware(80 * GB, gpus_per_node, 0)) == nodes


def test_models_on_cpus_share_one_machine(
    args: Args, write_file: WriteFile, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_with(total: int) -> Any:
        memory = SimpleNamespace(total=total, available=total)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        return run("plan", write_file(args))

    config = AppConfig.model_validate(args)
    needed = service_bytes(config) + sum(m.host_bytes for m in models(config).values())
    assert run_with(needed).exit_code == 0
    result = run_with(needed - 1)
    assert result.exit_code == 1
    assert result.stdout.count("problem:") == len(models(config))


def test_rounded_weights_and_fewer_layers_are_smaller_unless_whole_ones_stay(
    args: Args, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(**settings: object) -> int:
        draft = {**args["draft"], "dtype": "bfloat16", **settings}
        config = AppConfig.model_validate({**args, "draft": draft})
        return models(config)["draft"].footprint().weights

    monkeypatch.setattr(cpu, "has_bfloat16", lambda: True)
    beside_whole = weights(quantization="int4")
    assert weights(quantization="int8") < weights() < beside_whole
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: False)
    assert weights(quantization="int8") < weights(quantization="int4") < beside_whole
    assert weights(layers=[0, 1, 3], exit_layers=[3], thresholds=None) < weights()


def test_only_layers_up_to_the_last_exit_have_a_kv_cache(args: Args) -> None:
    def kv_cache(*exits: int) -> int:
        draft = {**args["draft"], "exit_layers": exits, "thresholds": None}
        return (
            models(AppConfig.model_validate({**args, "draft": draft}))["draft"].footprint().kv_cache
        )

    assert kv_cache(2, 4) == 2 * kv_cache(1, 2)


def test_a_gguf_file_is_planned_once_it_is_converted(
    args: Args, write_file: WriteFile, run: Run, tmp_path: Path
) -> None:
    gguf = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama", seed=1))
    args["targets"] = {"tiny": {**args["targets"]["tiny"], "source": str(gguf)}}
    file = write_file(args)
    result = run("plan", file)
    assert result.exit_code == 1
    assert f"problem: tiny: {gguf}: the first start converts it" in result.stdout
    assert "`s2d models --fetch` does it now" in result.stdout
    assert run("models", "--fetch", file).exit_code == 0
    assert run("plan", file).exit_code == 0


def test_a_model_that_cannot_be_loaded_is_one_line_and_the_others_are_planned(
    args: Args, write_file: WriteFile, run: Run
) -> None:
    args["targets"]["tiny"]["max_context"] = 100_000
    result = run("plan", write_file(args))
    assert result.exit_code == 1
    assert "exceeds the model's 512 positions" in result.stdout
    assert result.stdout.count("problem:") == 1
    assert "tiny-alone" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tiny", {"dtype": "float32", "weight_rounding": "int8"}),
        ("draft", {"dtype": "bfloat16", "quantization": "int4"}),
    ],
)
def test_a_process_takes_what_was_planned(
    args: Args, tmp_path: Path, name: str, settings: dict[str, str]
) -> None:
    """A model of 84 million weights, whose process takes less than a GB."""
    model = tiny_model("llama", seed=0, hidden=1024, heads=8, kv_heads=8, num_layers=8)
    source = str(save_tiny(tmp_path, model.bfloat16()))
    models = {"tiny": args["targets"]["tiny"], "draft": {**args["draft"], "exit_layers": [2, 8]}}
    models[name] |= {"source": source, "max_context": 512, **settings}
    config = AppConfig.model_validate({"draft": models.pop("draft"), "targets": models})
    planned, measured = measure_in_process(config, name)
    assert measured.kv_cache == planned.kv_cache
    assert measured.total == pytest.approx(planned.total, rel=0.15)
