"""Times torch's AdamW, one JSON request a line on stdin.

Request: {"op": "adamw", "fused": true, "n": 48, "k": 125000, "threads": 2, "budget_s": 2.0,
          "max_repeats": 300, "dtype": "f32"}
Answer:  {"peer", "peer_median_s", "peer_repeats", "peer_residual"} or {"error"}.

One pass is one step over `n` parameters of `k` values with gradients that stay. Without `fused`, torch takes its loop over
parameters on a CPU (its grouped form is for accelerators), a dozen passes over memory each. Steps are timed until
`budget_s` is spent or `max_repeats` are done, after ten that nobody counts.
"""

import time

import timing
import torch


def measure(req):
    if req["op"] != "adamw":
        raise ValueError(f"unknown op {req['op']}")
    dtype = timing.start(req)
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

    budget, most = float(req.get("budget_s", 2.0)), int(req.get("max_repeats", 300))
    return timing.answer("adamw" + (" fused" if fused else ""), *timing.timed(once, 10, budget, most))


timing.serve(measure)
