"""The app builder that deployment files name: `import_path: s2d_serve.serving.app:build`."""

import asyncio
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig

from s2d_serve.api.errors import FAULTS, OUR_FAULT
from s2d_serve.config import AppConfig, ModelConfig, ReplicasConfig
from s2d_serve.engine.calibration import calibrated
from s2d_serve.errors import UnavailableError
from s2d_serve.exposure import check_exposure
from s2d_serve.observability.meter import Meter
from s2d_serve.observability.request import RequestFilter
from s2d_serve.serving.metrics_keeper import MetricsKeeper
from s2d_serve.serving.servers import DraftServer, TargetServer
from s2d_serve.serving.tasks import spawn
from s2d_serve.serving.termination import told_to_end

if TYPE_CHECKING:
    from fastapi import FastAPI

ROUTER = "router"
DRAFT = "draft"
METRICS = "metrics"
REPLICA_CPUS = 0.1
"""CPUs that Ray sets aside for each replica."""
HEALTH_CHECK_PERIOD_S = 5.0
"""How often a replica looks whether its model lives."""
LOAD_WINDOW_S = 5.0
"""Autoscaling looks at the mean load of so long."""
MAX_HTTP_REQUESTS = 1000
"""Requests that a router replica holds at once; each target's queue has its own limit."""


class HttpRouter:
    """The deployment that takes HTTP."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: AppConfig, targets: dict[str, Any], draft: Any | None, keeper: Any
    ) -> None:
        from s2d_serve.serving.directory import Directory  # heavy: tokenizers come with torch
        from s2d_serve.serving.metrics import Metrics
        from s2d_serve.serving.router import Router
        from s2d_serve.serving.service import Service

        client = await asyncio.to_thread(_get_global_client)
        assert client is not None, "a replica has a controller"
        check_exposure(client.http_config.host, config)
        app = serve.get_replica_context().app_name
        deployments = [*targets, *([] if draft is None else [DRAFT])]
        sleepers = {name for name, target in config.targets.items() if not target.replicas.min}
        directory = Directory(app, deployments, sleepers)
        actor_name = ray.get_runtime_context().get_actor_name()
        assert actor_name is not None, "Serve names its replicas"
        _log_with_serve()
        meter = Meter(config.targets, [fault.code for fault in (*FAULTS.values(), OUR_FAULT)])
        metrics = Metrics(meter, directory, keeper)
        router = Router(config, targets, draft, directory, actor_name, meter)
        self._service = Service(config, router, directory, metrics)
        spawn(metrics.run())
        self._told_to_end = told_to_end()

    async def check_health(self) -> None:
        """Serve's own question. At SIGTERM the answer is no: Serve then sends new requests to
        another replica and ends this one when its last request is done.
        """
        if self._told_to_end.is_set():
            raise UnavailableError("told to end by SIGTERM")

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Called by Serve after the constructor."""
        from s2d_serve.serving.http import build_api

        return build_api(self._service)


def _log_with_serve() -> None:
    """Our lines go where this replica's own go, with the request that they are about."""
    serve_log, log = logging.getLogger("ray.serve"), logging.getLogger("s2d_serve")
    for handler in serve_log.handlers:
        handler.addFilter(RequestFilter())
    log.handlers = serve_log.handlers
    log.setLevel(serve_log.level)
    log.propagate = False


def build(args: AppConfig) -> Application:
    """One deployment per target, named after it, one for the draft, the router before them, and
    the keeper of its metrics.

    Raises: ConfigError if the calibration file cannot be read.
    """
    args = calibrated(args)
    targets = {
        name: _deployment(
            TargetServer,
            name,
            args,
            target.max_sequences,
            max_queued_requests=target.max_queued,
            health_check_timeout_s=2 * target.silence_s,
            **_replicas(target.replicas, target.max_sequences),
            **_placement(target, target.tensor_parallel_size, target.placement_strategy),
        ).bind(name, target)
        for name, target in args.targets.items()
    }
    draft = None
    if args.draft is not None:
        pairs = {name: target.speculation for name, target in args.targets.items()}
        num_sequences = sum(t.max_sequences * t.replicas.max for t in args.targets.values())
        server = _deployment(
            DraftServer,
            DRAFT,
            args,
            num_sequences,  # those without a slot wait for one inside, and run meanwhile
            health_check_timeout_s=2 * args.draft.silence_s,
            **_replicas(args.draft.replicas, args.draft.max_sequences),
            **_placement(args.draft),
        )
        draft = server.bind(args.draft, pairs)
    keeper = _deployment(MetricsKeeper, METRICS, args, MAX_HTTP_REQUESTS, num_replicas=1)
    router = _deployment(
        serve.ingress()(HttpRouter),
        ROUTER,
        args,
        MAX_HTTP_REQUESTS,
        num_replicas=args.router.replicas,
        resources=args.router.resources,
    )
    return router.bind(args, targets, draft, keeper.bind())


def _replicas(replicas: ReplicasConfig, num_slots: int) -> dict[str, Any]:
    """A lease lasts as long as its sequence, so that Serve's ongoing requests are slots in use."""
    if replicas.min == replicas.max:
        return {"num_replicas": replicas.min}
    with warnings.catch_warnings():  # what Ray 2.60 names in its place is read by nothing
        warnings.filterwarnings("ignore", message=".*metrics_interval_s")
        autoscaling = AutoscalingConfig(
            min_replicas=replicas.min,
            max_replicas=replicas.max,
            target_ongoing_requests=replicas.target_load * num_slots,
            upscale_delay_s=replicas.upscale_delay_s,
            downscale_delay_s=replicas.downscale_delay_s,
            look_back_period_s=LOAD_WINDOW_S,
            metrics_interval_s=LOAD_WINDOW_S / 5,
        )
    return {"autoscaling_config": autoscaling}


def _placement(model: ModelConfig, num_ranks: int = 1, strategy: str = "PACK") -> dict[str, Any]:
    """A bundle for each rank's executor, the first one for its replica too."""
    rank = {"CPU": model.num_cpus, "GPU": model.num_gpus, **model.resources}
    rank = {name: amount for name, amount in rank.items() if amount}
    first = {**rank, "CPU": model.num_cpus + REPLICA_CPUS}
    return {
        "placement_group_bundles": [first] + [rank] * (num_ranks - 1),
        "placement_group_strategy": strategy,
    }


def _deployment(
    server: Callable[..., Any],
    name: str,
    args: AppConfig,
    max_ongoing: int,
    resources: Mapping[str, float] = {},
    **options: Any,
) -> Deployment:
    """A deployment whose replicas wait most of the time: the executors compute."""
    return serve.deployment(
        name=name,
        max_ongoing_requests=max_ongoing,
        graceful_shutdown_timeout_s=args.limits.total_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        ray_actor_options={"num_cpus": REPLICA_CPUS, "resources": dict(resources)},
        logging_config=LoggingConfig(
            encoding="JSON", log_level=args.logs.level, enable_access_log=False
        ),
        **options,
    )(server)
