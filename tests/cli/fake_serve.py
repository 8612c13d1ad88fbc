"""Stands in for Serve's command, as the JSON in $FAKE_SERVE says.

port: where `run` answers; code: HTTP status of its answers; draft: states of the draft, one an
answer, the last for ever; exit: `run` ends with it at once; status: what `status` prints.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

FAKE = json.loads(os.environ["FAKE_SERVE"])


class Handler(BaseHTTPRequestHandler):
    """Gives every GET the same answer."""

    def do_GET(self) -> None:
        self.send_response(FAKE["code"] if self.path == "/ready" else 404)
        self.end_headers()
        states = FAKE["draft"]
        self.wfile.write(json.dumps({"draft": states.pop(0) if states[1:] else states[0]}).encode())


if sys.argv[1] == "status":
    assert sys.argv[2:] == ["--address", "http://127.0.0.1:8266"]
    sys.stdout.write(FAKE["status"])
else:
    sys.stderr.write("View the dashboard at \033[1mhttp://127.0.0.1:8266\033[22m\n")
    if FAKE["exit"] is not None:
        sys.exit(FAKE["exit"])
    try:
        HTTPServer(("127.0.0.1", FAKE["port"]), Handler).serve_forever()
    except KeyboardInterrupt:
        sys.stderr.write("shut down\n")
