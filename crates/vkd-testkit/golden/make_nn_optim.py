"""Writes nn_optim.safetensors beside this file: norm layers and optimisers of torch, in f64.

Inputs are drawn in f32 and widened. Images are stored channels-last, (B, H, W, C). `cot` is the
incoming gradient; the gradients stored are those of sum(y * cot). An optimiser descends
sum(cube_i * p**3 + line_i * p) over five steps from `start`: a gradient that no step leaves alone.
LAMB, which torch lacks, is written here from arXiv:1904.00962, algorithm 2.
"""

import pathlib

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

torch.manual_seed(20261124)
torch.set_num_threads(1)
out = {}


def draw(*shape):
    return torch.randn(*shape).double()


def put(name, tensor):
    out[name] = tensor.detach().clone().contiguous()


def batch_norm():
    bn = torch.nn.BatchNorm2d(5, eps=1e-5, momentum=0.2).double()
    with torch.no_grad():
        bn.weight.copy_(draw(5) + 1)
        bn.bias.copy_(draw(5))
    put("batch_norm.weight", bn.weight)
    put("batch_norm.bias", bn.bias)
    for step, mode in enumerate(["train", "train", "train", "eval"]):
        bn.train(mode == "train")
        x = (draw(3, 4, 2, 5) * 2 + 1).requires_grad_()
        cot = draw(3, 4, 2, 5)
        bn.zero_grad()
        y = bn(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        (y * cot).sum().backward()
        values = {"x": x, "cot": cot, "y": y, "grad_x": x.grad, "grad_weight": bn.weight.grad,
                  "grad_bias": bn.bias.grad, "running_mean": bn.running_mean,
                  "running_var": bn.running_var}
        for key, value in values.items():
            put(f"batch_norm.{step}.{key}", value)


def with_gradients(name, inputs, cot, f):
    inputs = {key: value.requires_grad_() for key, value in inputs.items()}
    y = f(**inputs)
    (y * cot).sum().backward()
    put(f"{name}.cot", cot)
    put(f"{name}.y", y)
    for key, value in inputs.items():
        put(f"{name}.{key}", value)
        put(f"{name}.grad_{key}", value.grad)


def group_norm():
    def f(x, weight, bias):
        return F.group_norm(x.permute(0, 3, 1, 2), 3, weight, bias, 1e-5).permute(0, 2, 3, 1)

    inputs = {"x": draw(2, 3, 4, 6) + 1, "weight": draw(6) + 1, "bias": draw(6)}
    with_gradients("group_norm", inputs, draw(2, 3, 4, 6), f)


def rms_norm():
    def f(x, weight):
        return F.rms_norm(x, (7,), weight, 1e-6)

    with_gradients("rms_norm", {"x": draw(3, 5, 7), "weight": draw(7) + 1}, draw(3, 5, 7), f)


class Lamb(torch.optim.Optimizer):
    def __init__(self, params, lr, betas, eps, weight_decay):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "wd": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                s = self.state[p]
                if not s:
                    s.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                s["t"] += 1
                s["m"] = b1 * s["m"] + (1 - b1) * p.grad
                s["v"] = b2 * s["v"] + (1 - b2) * p.grad**2
                m, v = s["m"] / (1 - b1 ** s["t"]), s["v"] / (1 - b2 ** s["t"])
                r = m / (v.sqrt() + group["eps"]) + group["wd"] * p
                p -= group["lr"] * (p.norm() / r.norm()) * r


def optimisers():
    start, cube, line = draw(4, 3), draw(4, 3).abs(), draw(4, 3)
    put("optim.start", start)
    put("optim.cube", cube)
    put("optim.line", line)
    lr = 0.05
    kinds = {
        "adamw": lambda p: torch.optim.AdamW([p], lr=lr, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1),
        "sgd": lambda p: torch.optim.SGD([p], lr=lr, weight_decay=0.1),
        "momentum": lambda p: torch.optim.SGD([p], lr=lr, momentum=0.9, weight_decay=0.1),
        "nesterov": lambda p: torch.optim.SGD([p], lr=lr, momentum=0.9, nesterov=True, weight_decay=0.1),
        "lamb": lambda p: Lamb([p], lr=lr, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1),
        "clipped": lambda p: torch.optim.SGD([p], lr=lr),
    }
    for kind, make in kinds.items():
        p = torch.nn.Parameter(start.clone())
        optimiser = make(p)
        average = torch.optim.swa_utils.AveragedModel(
            torch.nn.ParameterList([p]), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
        average.update_parameters(torch.nn.ParameterList([p]))
        for step in range(5):
            optimiser.zero_grad()
            (cube * p**3 + line * p).sum().backward()
            if kind == "clipped":
                put(f"optim.clipped.{step}.norm", torch.nn.utils.clip_grad_norm_([p], 1.0))
            optimiser.step()
            put(f"optim.{kind}.{step}", p)
            if kind == "momentum":
                average.update_parameters(torch.nn.ParameterList([p]))
                put(f"optim.ema.{step}", next(average.module.parameters()))


batch_norm()
group_norm()
rms_norm()
optimisers()
save_file(out, pathlib.Path(__file__).with_name("nn_optim.safetensors"))
