"""Writes nn_transformer.safetensors beside itself; needs torch and safetensors.

A transformer's parts in torch and f64 from inputs drawn in f32. Per case: the inputs `in.0`, `in.1`, .. in the order in which
tests/golden_transformer.rs hands them to the op, numbers `config`, the result `y`, `cot`, and `grad.0`, .. of `sum(y * cot)`.
Attention is written out from torch's own products and softmax where a bias wants a gradient, and checked here against
`scaled_dot_product_attention`.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

OUT = {}
ACTIVATIONS = {
    "identity": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def draw(*shape):
    return torch.randn(*shape).double().requires_grad_()


def record(name, config, forward, *inputs):
    y = forward(*inputs)
    cot = torch.randn(y.shape).double()
    (y * cot).sum().backward()
    OUT[f"{name}.config"] = torch.tensor(config, dtype=torch.int64)
    # What was drawn in f32 is stored so: nothing is lost.
    OUT[f"{name}.y"], OUT[f"{name}.cot"] = y.detach(), cot.float()
    for at, value in enumerate(inputs):
        wanted = value.is_floating_point()
        OUT[f"{name}.in.{at}"] = value.detach().float() if wanted else value
        if wanted and value.requires_grad:
            OUT[f"{name}.grad.{at}"] = value.grad


def heads_of(x, heads):
    b, n, c = x.shape
    return x.reshape(b, n, heads, c // heads).transpose(1, 2)


def attend(q, k, v, bias, heads):
    q, k, v = (heads_of(x, heads) for x in (q, k, v))
    if bias is not None and bias.dim() == 3:
        # (B, 1, M) is a mask for each sample, (H or 1, N, M) is for all of them.
        bias = bias.unsqueeze(1) if bias.shape[1] == 1 and q.shape[2] != 1 else bias.unsqueeze(0)
    scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
    y = torch.softmax(scores if bias is None else scores + bias, 3) @ v
    own = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(y, own, rtol=1e-12, atol=1e-12)
    return y.transpose(1, 2).flatten(2)


def attention(name, batch, tokens, width, heads, bias=None):
    inputs = [draw(batch, tokens, 3 * width)]
    inputs += [] if bias is None else [bias]
    record(
        f"attention.{name}", [heads],
        lambda qkv, bias=None: attend(*qkv.chunk(3, 2), bias, heads), *inputs,
    )


def cross(name, batch, queries, keys, width, heads, bias=None):
    inputs = [draw(batch, queries, width), draw(batch, keys, 2 * width)]
    inputs += [] if bias is None else [bias]
    record(
        f"cross.{name}", [heads],
        lambda q, kv, bias=None: attend(q, *kv.chunk(2, 2), bias, heads), *inputs,
    )


def mask(batch, keys):
    """Zero and minus infinity; the first key of each sample stays."""
    hidden = torch.rand(batch, 1, keys) < 0.4
    hidden[:, :, 0] = False
    return torch.zeros(batch, 1, keys).double().masked_fill(hidden, -torch.inf)


def sublayer(name, kind, x, hidden, scale, heads=0):
    width = x.shape[-1]
    outer = width if kind == "attention" else hidden
    weights = [draw(width), draw(width), draw(hidden, width), draw(hidden), draw(width, outer), draw(width)]

    def forward(x, gain, shift, w_in, b_in, w_out, b_out):
        ys = F.linear(F.layer_norm(x, (width,), gain, shift, 1e-6), w_in, b_in)
        ys = attend(*ys.chunk(3, 2), None, heads) if kind == "attention" else ACTIVATIONS[kind](ys)
        factors = torch.tensor(scale).double().reshape(-1, *[1] * (x.dim() - 1)) / 4
        return x + F.linear(ys, w_out, b_out) * factors

    # The factors of the samples in quarters, so that whole numbers hold them.
    record(f"sublayer.{kind}.{name}", [heads, *scale], forward, x, *weights)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for kind, f in ACTIVATIONS.items():
        if kind != "identity":
            wide = (torch.randn(7, 33) * 4).double().requires_grad_()
            record(f"activation.{kind}", [], f, wide)
        record(f"linear.{kind}.bias", [], lambda x, w, b: f(F.linear(x, w, b)), draw(2, 3, 5), draw(7, 5), draw(7))
        record(f"linear.{kind}.bare", [], lambda x, w: f(F.linear(x, w)), draw(4, 9), draw(3, 9))
    attention("one", 1, 1, 1, 1)
    attention("plain", 2, 5, 12, 3)
    attention("long", 1, 131, 4, 2)
    attention("by_head", 2, 5, 8, 2, draw(2, 5, 5))
    attention("for_all", 2, 5, 8, 2, draw(1, 5, 5))
    attention("mask", 3, 6, 8, 2, mask(3, 6))
    attention("swin", 4, 7, 8, 2, draw(1, 2, 7, 7))
    attention("windows", 3, 4, 8, 2, draw(3, 1, 4, 4))
    attention("full", 2, 3, 8, 2, draw(2, 2, 3, 3))
    attention("by_key", 2, 3, 8, 2, draw(1, 2, 1, 3))
    cross("plain", 2, 3, 7, 8, 2)
    cross("bias", 2, 3, 7, 8, 2, draw(1, 2, 3, 7))
    cross("mask", 2, 3, 7, 8, 4, mask(2, 7))
    for name, x in (("rows", draw(5, 33)), ("tokens", draw(2, 3, 7))):
        width = x.shape[-1]
        record(f"layer_norm.{name}", [], lambda x, w, b: F.layer_norm(x, (width,), w, b, 1e-6), x, draw(width), draw(width))
        y = x.detach().clone().requires_grad_()
        record(f"rms_norm.{name}", [], lambda x, w: F.rms_norm(x, (width,), w, 1e-6), y, draw(width))
        for kind in ("softmax", "log_softmax"):
            z = (x.detach() * 3).float().double().requires_grad_()
            record(f"{kind}.{name}", [], lambda x: getattr(torch, kind)(x, -1), z)
    ids = torch.randint(0, 9, (2, 7))
    record("embedding.repeated", [], lambda table, ids: F.embedding(ids, table), draw(9, 5), ids)
    sublayer("plain", "attention", draw(2, 5, 6), 18, [4, 4], 2)
    sublayer("dropped", "attention", draw(3, 4, 6), 18, [5, 0, 5], 3)
    sublayer("plain", "gelu", draw(2, 5, 6), 24, [4, 4])
    sublayer("dropped", "silu", draw(3, 2, 2, 7), 11, [5, 0, 5])
    save_file({key: value.contiguous() for key, value in OUT.items()},
              Path(__file__).parent / "nn_transformer.safetensors", {"torch": torch.__version__})


main()
