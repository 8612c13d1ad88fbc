"""The app builder that deployment files name: `import_path: s2d_serve.serving.app:build`."""

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from s2d_serve.config import AppConfig
from s2d_serve.serving.directory import Directory
from s2d_serve.serving.http import build_api
from s2d_serve.serving.router import Router
from s2d_serve.serving.servers import DraftServer, TargetServer
from s2d_serve.serving.service import DRAFT, Service

ROUTER = "router"
REPLICA_CPUS = 0.1
"""CPUs that Ray sets aside for a replica: it waits most of the time; the executors compute."""


class HttpRouter:
    """The deployment that takes HTTP."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: AppConfig, targets: dict[str, Any], draft: Any | None
    ) -> None:
        app = serve.get_replica_context().app_name
        deployments = [*targets, *([] if draft is None else [DRAFT])]
        directory = Directory(app, deployments)
        self._service = Service(config, Router(config, targets, draft, directory), directory)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return build_api(self._service)


def build(args: AppConfig) -> Application:
    """One deployment per target, named after it, one for the draft, and the router before them."""
    targets = {
        name: serve.deployment(TargetServer)
        .options(
            name=name,
            max_ongoing_requests=target.max_sequences,
            max_queued_requests=target.max_queued,
            graceful_shutdown_timeout_s=args.limits.total_s,
            ray_actor_options={"num_cpus": REPLICA_CPUS},
        )
        .bind(name, target)
        for name, target in args.targets.items()
    }
    draft = None
    if args.draft is not None:
        pairs = {name: target.speculation for name, target in args.targets.items()}
        draft = (
            serve.deployment(DraftServer)
            .options(
                name=DRAFT,
                max_ongoing_requests=args.draft.max_sequences,
                graceful_shutdown_timeout_s=args.limits.total_s,
                ray_actor_options={"num_cpus": REPLICA_CPUS},
            )
            .bind(args.draft, pairs)
        )
    router = serve.deployment(serve.ingress()(HttpRouter)).options(
        name=ROUTER,
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=args.limits.total_s,
        ray_actor_options={"num_cpus": REPLICA_CPUS},
    )
    return router.bind(args, targets, draft)
