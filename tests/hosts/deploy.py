"""Runs on a host of a test's network: deploys an app on the Ray cluster there; it stays.

python -m tests.hosts.deploy ADDRESS ARGS.json PORT
"""

import json
import logging
import sys
from pathlib import Path

import ray
from ray import serve

from s2d_serve.config import AppConfig
from s2d_serve.serving.app import build

if __name__ == "__main__":
    address, args, port = sys.argv[1:]
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, namespace="serve")
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(build(AppConfig.model_validate(json.loads(Path(args).read_text()))), name="hosts")
