"""Load tests over HTTP: throughput and latency, with speculation and without; what to trust."""
