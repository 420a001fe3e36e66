"""Times SciPy's linear_sum_assignment, one JSON request a line on stdin.

Request: {"op": "linear_sum_assignment", "n": 300, "k": 100, "total": -99.0, "budget_s": 2.0, "max_repeats": 300}
Answer:  {"peer", "peer_median_s", "peer_repeats", "peer_residual"} or {"error"}.

One pass assigns `n` rows and `k` columns. Costs are those of `data` in benches/src/suite.rs, number for number: the cheapest
assignment must cost `total`. One thread, as it has no more.
"""

import time
from importlib.metadata import version

import numpy as np
import timing
from scipy.optimize import linear_sum_assignment


def costs(rows, columns, seed):
    bits = (np.arange(rows * columns, dtype=np.uint32) + np.uint32(seed << 16)) * np.uint32(0x9E3779B1)
    bits = (bits ^ (bits >> np.uint32(15))) * np.uint32(0x85EBCA77)
    bits ^= bits >> np.uint32(13)
    values = (bits | np.uint32(1)).astype(np.float64) / np.float64(0xFFFFFFFF) * 2.0 - 1.0
    return values.astype(np.float32).astype(np.float64).reshape(rows, columns)


def measure(req):
    if req["op"] != "linear_sum_assignment":
        raise ValueError(f"unknown op {req['op']}")
    matrix = costs(int(req["n"]), int(req["k"]), 1)
    total = matrix[linear_sum_assignment(matrix)].sum()
    if abs(total - req["total"]) > 1e-9:
        raise ValueError(f"expected a total of {req['total']}, got {total!r}")

    def once():
        start = time.perf_counter()
        linear_sum_assignment(matrix)
        return time.perf_counter() - start

    budget, most = float(req.get("budget_s", 2.0)), int(req.get("max_repeats", 300))
    median, repeats = timing.timed(once, 10, budget, most)
    return timing.answer("linear_sum_assignment", median, repeats, library="scipy " + version("scipy"))


timing.serve(measure)
