"""Times torch's training step of a transformer, one JSON request a line on stdin.

Request: {"op": "vit_step", "shape": [depth, batch, tokens, width], "heads": 3, "threads": 2,
          "budget_s": 2.0, "max_repeats": 300, "dtype": "f32"}
Answer:  {"peer", "peer_median_s", "peer_repeats", "peer_residual"} or {"error"}.

The same pre-norm blocks as in benches/nn.rs: layer norm, packed attention by
`scaled_dot_product_attention`, layer norm, an MLP of four times the width with exact GELU; mean of
squares as the loss; forward, backward and AdamW (its fused form: torch's fastest on the CPU). `peer` also says by how
much one step raises the resident memory of a fresh process; see timing.py.
"""

import time

import timing
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        x = x + self.proj(y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def steps(req, dtype):
    """A function that does one training step, of the whole batch or of its first samples."""
    if req["op"] != "vit_step":
        raise ValueError(f"unknown op {req['op']}")
    depth, batch, tokens, width = req["shape"]
    model = nn.Sequential(*(Block(width, int(req["heads"])) for _ in range(depth))).to(dtype)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    free = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05, fused=True)
    x = torch.rand(batch, tokens, width, dtype=dtype).mul_(2).sub_(1)

    def once(samples=None):
        model(x[:samples]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once


def measure(req):
    dtype = timing.start(req)
    step = steps(req, dtype)

    def once():
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    budget, most = float(req.get("budget_s", 2.0)), int(req.get("max_repeats", 300))
    return timing.answer(req["op"] + timing.peak(req), *timing.timed(once, 5, budget, most))


timing.serve(measure, steps)
