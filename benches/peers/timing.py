"""What the peers share: the timing of a pass, and one JSON answer for each request on stdin."""

import json
import statistics
import sys

import torch


def start(req):
    """Threads, seed and dtype of a request."""
    torch.set_num_threads(int(req.get("threads", 2)))
    torch.manual_seed(0)
    return {"f32": torch.float32, "f64": torch.float64}[req.get("dtype", "f32")]


def timed(once, untimed, budget, most):
    """Median and number of passes of `once`, which returns seconds, after some that nobody counts."""
    for _ in range(untimed):
        once()
    times = []
    while not times or (len(times) < most and sum(times) < budget):
        times.append(once())
    return statistics.median(times), len(times)


def answer(name, median, repeats, residual=None):
    return {
        "peer": "torch " + torch.__version__.split("+")[0] + " " + name,
        "peer_median_s": median,
        "peer_repeats": repeats,
        "peer_residual": residual,
    }


def serve(measure):
    for line in sys.stdin:
        if line.strip():
            try:
                reply = measure(json.loads(line))
            except Exception as error:  # the asker decides what a failed work means
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), flush=True)
