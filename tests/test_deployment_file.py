from pathlib import Path

import pytest

from s2d_serve.deployment_file import load_deployment_file
from s2d_serve.errors import ConfigError

GOOD = """
http_options: {host: 127.0.0.1, port: 8010}
applications:
  - name: other
    import_path: elsewhere:app
  - name: s2d
    import_path: s2d_serve.serving.app:build
    route_prefix: /llm
    deployments: [{name: router, num_replicas: 2}]
    args:
      targets:
        a: {source: ./weights}
"""


def load(tmp_path: Path, text: str) -> str:
    """The message that refuses a file of this text, without the file's name."""
    path = tmp_path / "d.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_deployment_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_our_application_is_found(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(GOOD)
    file = load_deployment_file(path)
    assert file.app_name == "s2d"
    assert file.url == "http://127.0.0.1:8010/llm"
    assert file.config.targets["a"].source == "./weights"


def test_shipped_files_are_valid() -> None:
    for path in Path("deployments").glob("*.yaml"):
        assert load_deployment_file(path).config.targets


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:8010/llm"), ('"::1"', "http://[::1]:8010/llm")],
)
def test_url_is_one_that_a_client_can_use(tmp_path: Path, host: str, url: str) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(GOOD.replace("127.0.0.1", host))
    assert load_deployment_file(path).url == url


def test_host_defaults_to_serves_own_default_for_files(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(GOOD.replace("host: 127.0.0.1, ", ""))
    assert load_deployment_file(path).http.host == "0.0.0.0"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("source: ./weights", "sauce: x", "targets.a.source: is missing; targets.a.sauce: there"),
        ("{source: ./weights}", "weights", "targets.a: must hold settings by name"),
        (
            "{source: ./weights}",
            "{source: w, max_context: 3}",
            "targets.a.max_context: input should be greater than or equal to 16, got 3",
        ),
        (
            "{source: ./weights}",
            "{source: w, max_context: many}",
            "targets.a.max_context: input should be a valid integer, unable to parse",
        ),
        ("        a:", "        draft:", "targets: target name 'draft': use 1-64 of"),
        ("port: 8010", "port: 99999", "http_options.port: input should be less than"),
        ("s2d_serve.serving", "s3d", "0 applications have the import_path s2d_serve.serving"),
        ("elsewhere:app", "s2d_serve.serving.app.build", "2 applications have the import_path"),
        ("    import_path: elsewhere:app\n", "", "applications.0.import_path: is missing"),
        ("args:", "args: [", "no YAML: line "),
        (GOOD, "- a list", "must hold settings by name"),
        (GOOD, "", "must hold settings by name"),
        (GOOD, "when: 2024-99-99", "no YAML: month must be in 1..12"),
    ],
)
def test_bad_file_is_refused_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert load(tmp_path, GOOD.replace(old, new)).startswith(message)


def test_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_deployment_file(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_deployment_file(tmp_path)
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="no YAML"):
        load_deployment_file(path)
