"""Times torch's orthogonal parametrization, one JSON request a line on stdin.

Request: {"map": "householder|cayley|matrix_exp", "n": 3024, "k": 192, "scale": 0.1,
          "threads": 2, "budget_s": 5.0, "max_repeats": 15, "dtype": "f32", "device": "cpu"}
Answer:  {"peer", "peer_median_s", "peer_repeats", "peer_residual"} or {"error"}.

One pass is the weight, forward and backward, eager, `parametrize.cached` off.
The first request of a map runs a tiny layer untimed, to absorb start-up. A small work has one
untimed pass of its own; a large one, of seconds a pass, has not. Then passes are timed until
`budget_s` is spent or `max_repeats` are done, at least one.
`"trivialization"` (default true, as in torch) multiplies by an n x n base.
"""

import statistics

import timing
import torch
from torch.nn.utils.parametrizations import orthogonal


# From this n on the first pass of a work is timed: what torch does here grows with n * n * n.
LARGE = 1024
started = set()


def measure(req):
    if req["map"] not in started:
        started.add(req["map"])
        measure(dict(req, n=8, k=4, max_repeats=1))
    dtype = timing.start(req)
    n, k = int(req["n"]), int(req["k"])
    device = req.get("device", "cpu")
    layer = torch.nn.Linear(k, n, bias=False, dtype=dtype, device=device)
    # The start is replaced below, so a cheap one with orthonormal columns will do.
    with torch.no_grad():
        layer.weight.copy_(torch.eye(n, k, dtype=dtype, device=device))
    orthogonal(layer, orthogonal_map=req["map"], use_trivialization=bool(req.get("trivialization", True)))
    raw = layer.parametrizations.weight.original
    with torch.no_grad():
        # The diagonal holds torch's Householder signs: only what is below it is drawn.
        drawn = torch.randn(raw.shape, dtype=dtype, device=device) * float(req.get("scale", 0.1))
        raw.copy_(drawn.tril(-1) + raw.tril().triu())
    grad = torch.randn(n, k, dtype=dtype, device=device)

    def reset():
        raw.grad = None

    once = timing.clock(req, lambda: layer.weight.backward(grad), reset)
    if n < LARGE:
        once()
    most = int(req.get("max_repeats", 15))
    budget = float(req.get("budget_s", 5.0))
    times = []
    while not times or (len(times) < most and sum(times) < budget):
        times.append(once())
    w = layer.weight.detach().double()
    residual = (w.T @ w - torch.eye(k, dtype=torch.float64, device=device)).abs().max().item()
    return timing.answer(req["map"], statistics.median(times), len(times), residual)


timing.serve(measure)
