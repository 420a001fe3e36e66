"""Times torch's convolutions, one JSON request a line on stdin.

Request: {"op": "cnn|basic_block|depthwise", "n": 64, "k": 28, "threads": 2, "budget_s": 2.0,
          "max_repeats": 300, "dtype": "f32"}; n is the batch, k the size of the image
Answer:  {"peer", "peer_median_s", "peer_repeats", "peer_residual"} or {"error"}.

`cnn` and `basic_block` are a training step: forward, mean of squares, backward, AdamW (fused; the faster
of torch's). `depthwise` is forward and backward from a gradient of ones. Each runs with contiguous and
with channels-last tensors; the faster one is the answer, and `peer` says which, and by how much one of its passes
raises the resident memory of a fresh process (see timing.py). Passes are timed until half of `budget_s` is spent on
each or `max_repeats` are done, after ten that nobody counts.
"""

import time

import timing
import torch
from torch import nn

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class BasicBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(64, 64, 3, padding=1)
        self.second = nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def cnn(size):
    half = [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), *half,
        nn.Conv2d(32, 64, 3, padding=1), *half,
        nn.Flatten(), nn.Linear(64 * (size // 4) ** 2, 10),
    )


def works(op, batch, size, dtype, layout):
    """One pass, over the whole batch or its first samples; no gradient stays."""

    def images(channels, grad):
        x = torch.rand(batch, channels, size, size, dtype=dtype).mul_(2).sub_(1)
        return x.contiguous(memory_format=layout).requires_grad_(grad)

    if op == "depthwise":
        model, x = nn.Conv2d(96, 96, 3, padding=1, groups=96), images(96, True)
    elif op == "basic_block":
        model, x = BasicBlock(), images(64, True)
    elif op == "cnn":
        model, x = cnn(size), images(1, False)
    else:
        raise ValueError(f"unknown op {op}")
    model = model.to(dtype).to(memory_format=layout)
    ones = torch.ones_like(model(x).detach())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def once(samples=None):
        if op == "depthwise":
            model(x[:samples]).backward(ones[:samples])
        else:
            model(x[:samples]).square().mean().backward()
            optimizer.step()
        x.grad = None
        optimizer.zero_grad(set_to_none=True)

    return once


def steps(req, dtype):
    return works(req["op"], int(req["n"]), int(req["k"]), dtype, FORMATS[req["format"]])


def measure(req):
    dtype = timing.start(req)
    most = int(req.get("max_repeats", 300))
    budget = float(req.get("budget_s", 2.0)) / len(FORMATS)
    answers = []
    for name in FORMATS:
        step = steps(req | {"format": name}, dtype)

        def once():
            start = time.perf_counter()
            step()
            return time.perf_counter() - start

        answers.append((*timing.timed(once, 10, budget, most), name))
    median, repeats, name = min(answers)
    peak = timing.peak(req | {"format": name})
    reply = timing.answer(f"{req['op']} ({name}){peak}", median, repeats)
    return reply | {"others": {name: median for median, _, name in answers}}


timing.serve(measure, steps)
