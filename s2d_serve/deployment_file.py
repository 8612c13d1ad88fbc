"""A deployment file: Serve's own schema around our `args`.

Serve checks its part of the file itself; read here is what the `s2d` command needs of it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from s2d_serve.config import AppConfig
from s2d_serve.errors import ConfigError

IMPORT_PATH = "s2d_serve.serving.app:build"
"""How a file names the application that is ours."""

Model = TypeVar("Model", bound=BaseModel)


class HttpOptions(BaseModel):
    """Where Serve's proxy listens; the defaults are those that Serve has for files."""

    host: str = "0.0.0.0"
    port: int = Field(default=8000, ge=0, le=65535)


class Application(BaseModel):
    """One of the file's applications."""

    name: str = "default"
    import_path: str
    route_prefix: str | None = "/"
    args: dict[str, Any] = {}


class ServeFile(BaseModel):
    """The whole file."""

    http_options: HttpOptions = HttpOptions()
    applications: list[Application]


@dataclass(frozen=True, slots=True)
class DeploymentFile:
    """What a deployment file serves, and where."""

    path: Path
    http: HttpOptions
    app_name: str
    route_prefix: str
    config: AppConfig

    @property
    def url(self) -> str:
        """Where a client on this machine finds the service."""
        host = "127.0.0.1" if self.http.host in ("0.0.0.0", "::") else self.http.host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.http.port}{self.route_prefix.rstrip('/')}"


def load_deployment_file(path: Path) -> DeploymentFile:
    """Read and check a deployment file.

    Raises:
        ConfigError: in one line, the file's name, the setting at fault, and why.
    """
    file = _validated(ServeFile, _parsed(path), path)
    ours = [app for app in file.applications if _is_ours(app.import_path)]
    if len(ours) != 1:
        raise ConfigError(
            f"{path}: {len(ours)} applications have the import_path {IMPORT_PATH}; one must"
        )
    app = ours[0]
    config = _validated(AppConfig, app.args, path)
    return DeploymentFile(path, file.http_options, app.name, app.route_prefix or "/", config)


def _is_ours(import_path: str) -> bool:
    return import_path.replace(":", ".") == IMPORT_PATH.replace(":", ".")  # Serve takes both


def _parsed(path: Path) -> object:
    try:
        value: object = yaml.safe_load(path.read_text("utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{path}: no YAML: {where}{error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: no YAML: {reason}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of a deployment file") from None
    return value


def _validated(model: type[Model], value: object, path: Path) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(_problem(dict(detail)) for detail in error.errors(include_url=False))
        raise ConfigError(f"{path}: {problems}") from None


def _problem(detail: dict[str, Any]) -> str:
    """One of pydantic's findings as `field: reason (got value)`."""
    field = ".".join(str(part) for part in detail["loc"])
    match detail["type"]:
        case "extra_forbidden":
            reason = "there is no such setting"
        case "missing":
            reason = "is missing"
        case "model_type" | "dict_type":
            reason = "must hold settings by name"
        case "value_error":
            reason = str(detail["ctx"]["error"])
        case _:
            reason = f"{detail['msg'][0].lower()}{detail['msg'][1:]}, got {detail['input']!r}"
    return f"{field}: {reason}" if field else reason
