"""Times torch's AdamW, one JSON request a line on stdin.

Request: {"op": "adamw", "fused": true, "n": 48, "k": 125000, "threads": 2, "budget_s": 2.0,
          "max_repeats": 300, "dtype": "f32"}
Answer:  {"peer", "peer_median_s", "peer_repeats", "peer_residual"} or {"error"}.

One pass is one step over `n` parameters of `k` values with gradients that stay. Without `fused`, torch takes its loop over
parameters on a CPU (its grouped form is for accelerators), a dozen passes over memory each. Steps are timed until
`budget_s` is spent or `max_repeats` are done, after ten that nobody counts.
"""

import json
import statistics
import sys
import time

import torch


def measure(req):
    if req["op"] != "adamw":
        raise ValueError(f"unknown op {req['op']}")
    torch.set_num_threads(int(req.get("threads", 2)))
    torch.manual_seed(0)
    dtype = {"f32": torch.float32, "f64": torch.float64}[req.get("dtype", "f32")]
    parameters = []
    for _ in range(int(req["n"])):
        parameter = torch.nn.Parameter(torch.rand(int(req["k"]), dtype=dtype))
        parameter.grad = torch.rand_like(parameter)
        parameters.append(parameter)
    fused = bool(req.get("fused", False))
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, fused=fused)

    def once():
        start = time.perf_counter()
        optimizer.step()
        return time.perf_counter() - start

    for _ in range(10):
        once()
    most = int(req.get("max_repeats", 300))
    budget = float(req.get("budget_s", 2.0))
    times = []
    while not times or (len(times) < most and sum(times) < budget):
        times.append(once())
    return {
        "peer": "torch " + torch.__version__.split("+")[0] + " adamw" + (" fused" if fused else ""),
        "peer_median_s": statistics.median(times),
        "peer_repeats": len(times),
        "peer_residual": None,
    }


for line in sys.stdin:
    if line.strip():
        try:
            answer = measure(json.loads(line))
        except Exception as error:  # the asker decides what a failed work means
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
