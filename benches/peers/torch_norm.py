"""Times torch's normalisers and losses, one JSON request a line on stdin.

Request: {"op": "layer_norm|layer_norm_affine|batch_norm|batch_norm_2d|smooth_l1_layer_norm|whiten_cholesky|
                 whiten_zca|whiten_newton_schulz", "n": 4096, "k": 512,
          "threads": 2, "budget_s": 2.0, "max_repeats": 300, "dtype": "f32", "device": "cpu"}
Answer:  {"peer", "peer_median_s", "peer_repeats", "peer_residual"} or {"error"}.

One pass is forward and backward, eager, from a given gradient of ones (of one, for a loss).
`batch_norm` is training mode without gain, bias and running statistics: torch's fused form of a
per-channel standardisation, with the biased variance. `batch_norm_2d` is the whole layer on the same
values as images of `side` x `side`, stored channels-last as ours (torch is faster so than
channels first), with gain, bias and running statistics. Passes are timed until `budget_s` is spent
or `max_repeats` are done, after ten that nobody counts.
"""

import timing
import torch
from torch.nn import functional as F

EPS = 1e-5


def works(op, n, k, dtype, side):
    """The inputs that get a gradient, and the forward pass."""
    x = torch.rand(n, k, dtype=dtype).mul_(2).sub_(1).requires_grad_()
    if op == "layer_norm":
        return [x], lambda: F.layer_norm(x, (k,), eps=EPS)
    if op == "layer_norm_affine":
        gain = torch.ones(k, dtype=dtype, requires_grad=True)
        bias = torch.zeros(k, dtype=dtype, requires_grad=True)
        return [x, gain, bias], lambda: F.layer_norm(x, (k,), gain, bias, EPS)
    if op == "batch_norm":
        return [x], lambda: F.batch_norm(x, None, None, training=True, eps=EPS)
    if op == "batch_norm_2d":
        x = torch.rand(n // side**2, k, side, side, dtype=dtype).mul_(2).sub_(1)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        layer = torch.nn.BatchNorm2d(k, eps=EPS, dtype=dtype)
        return [x, *layer.parameters()], lambda: layer(x)
    if op == "smooth_l1_layer_norm":
        teacher = torch.rand(n, k, dtype=dtype)
        return [x], lambda: F.smooth_l1_loss(x, F.layer_norm(teacher, (k,), eps=EPS))
    if op.startswith("whiten_"):
        eye = torch.eye(k, dtype=dtype)

        def whiten():
            centred = x - x.mean(0)
            cov = (1 - EPS) / (n - 1) * (centred.T @ centred) + EPS * eye
            if op == "whiten_cholesky":
                factor = torch.linalg.cholesky(cov)
                return torch.linalg.solve_triangular(factor, centred.T, upper=False).T
            if op == "whiten_zca":
                values, vectors = torch.linalg.eigh(cov)
                return centred @ (vectors * values.rsqrt()) @ vectors.T
            trace = cov.trace()
            cov, p = cov / trace, eye
            for _ in range(5):
                p = 1.5 * p - 0.5 * (p @ p @ p) @ cov
            return centred @ (p * trace.rsqrt())

        return [x], whiten
    raise ValueError(f"unknown op {op}")


def measure(req):
    dtype = timing.start(req)
    with timing.place(req):
        inputs, forward = works(req["op"], int(req["n"]), int(req["k"]), dtype, int(req.get("side", 1)))
    grad = torch.ones_like(forward())

    def reset():
        for x in inputs:
            x.grad = None

    once = timing.clock(req, lambda: forward().backward(grad), reset)
    budget, most = float(req.get("budget_s", 2.0)), int(req.get("max_repeats", 300))
    return timing.answer(req["op"], *timing.timed(once, 10, budget, most))


timing.serve(measure)
