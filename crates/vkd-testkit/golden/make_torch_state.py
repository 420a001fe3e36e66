"""Writes torch_state.safetensors, torch_state.pth and torch_state_nested.pth beside itself; needs torch only.

What `torch.nn.utils.parametrizations.orthogonal` stores and publishes: wide weights, weights without a base, Householder
states whose diagonal has left 1 and -1, and whole state dicts as `torch.save` writes them.
"""

import json
import struct
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

MAPS = ("householder", "cayley", "matrix_exp")
HERE = Path(__file__).parent


def layer(n_out, n_in, dtype=torch.float32, **choices):
    linear = orthogonal(nn.Linear(n_in, n_out, bias=False, dtype=dtype), **choices)
    with torch.no_grad():
        # Off the start, but the diagonal: it is the sign of the Householder map, and the others do not read it.
        original = linear.parametrizations.weight.original
        step = 0.3 * torch.randn_like(original)
        step.diagonal().zero_()
        original += step
    return linear


def record(out, name, linear):
    state = linear.state_dict()
    out[f"{name}.original"] = state["parametrizations.weight.original"]
    if "parametrizations.weight.0.base" in state:
        out[f"{name}.base"] = state["parametrizations.weight.0.base"]
    out[f"{name}.weight"] = linear.weight.detach()


def save(path, tensors):
    names = {torch.float32: "F32", torch.float64: "F64"}
    header, data = {"__metadata__": {"torch": torch.__version__}}, b""
    for name, t in sorted(tensors.items()):
        raw = t.contiguous().numpy().tobytes()
        header[name] = {"dtype": names[t.dtype], "shape": list(t.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    out = {}
    for name in MAPS:
        for n_out, n_in in ((3, 5), (7, 33), (6, 1), (1, 6)):
            for dtype in (torch.float32, torch.float64):
                linear = layer(n_out, n_in, dtype, orthogonal_map=name)
                record(out, f"{name}.{n_out}x{n_in}.{str(dtype)[6:].replace('float', 'f')}", linear)
        # A batch, as a convolution's weight is.
        conv = orthogonal(nn.Conv2d(2, 3, (5, 4), bias=False), orthogonal_map=name)
        record(out, f"{name}.batch.f32", conv)
    for n_out, n_in in ((5, 3), (3, 5)):
        linear = layer(n_out, n_in, orthogonal_map="householder", use_trivialization=False)
        record(out, f"householder.no_base.{n_out}x{n_in}", linear)

    # One step of AdamW with weight decay: every diagonal entry is -0.99995, whose integer part is 0.
    linear = layer(6, 4, orthogonal_map="householder")
    adamw = torch.optim.AdamW(linear.parameters(), lr=1e-3, weight_decay=0.05)
    linear(torch.ones(2, 4)).square().mean().backward()
    adamw.step()
    record(out, "fault.decay", linear)
    for n_out, n_in in ((6, 4), (4, 6)):
        linear = layer(n_out, n_in, orthogonal_map="householder")
        with torch.no_grad():
            linear.parametrizations.weight.original.diagonal().copy_(torch.tensor([-1.0, 0.5, 2.7, 1.2]))
        record(out, f"fault.mixed.{n_out}x{n_in}", linear)

    model = nn.ModuleDict({
        "tall": layer(9, 4),
        "square": layer(5, 5),
        "wide": layer(3, 8),
        "plain": nn.Linear(4, 3),
        "norm": nn.BatchNorm1d(4),
    })
    for name in ("tall", "square", "wide"):
        out[f"pth.{name}.weight"] = model[name].weight.detach()
    out["pth.plain.weight"] = model["plain"].weight.detach()
    torch.save(model.state_dict(), HERE / "torch_state.pth")
    torch.save({"epoch": 3, "model": model.state_dict()}, HERE / "torch_state_nested.pth")
    save(HERE / "torch_state.safetensors", out)


main()
