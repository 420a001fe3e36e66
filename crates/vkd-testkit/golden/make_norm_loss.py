"""Writes norm_loss.safetensors beside this file: losses and whitenings of torch, in f64.

Inputs are drawn in f32 and widened. Each loss has `NAME.value` and `NAME.grad`, the gradient of the
student or the logits. Each whitening has `y` and `grad`, that of sum(y * cot); its covariance is
over N - 1 rows, shrunk to (1 - eps) S + eps I. Principal components come in order of falling
variance, in each the entry of largest magnitude positive. IterNorm is arXiv:1904.03441, equation 5.
"""

import pathlib

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

torch.manual_seed(20261125)
torch.set_num_threads(1)
out = {}


def draw(*shape):
    return torch.randn(*shape).double()


def put(name, tensor):
    out[name] = tensor.detach().clone().contiguous()


def loss(name, student, f):
    student = student.clone().requires_grad_()
    value = f(student)
    value.backward()
    put(f"{name}.value", value)
    put(f"{name}.grad", student.grad)


def losses():
    logits, student, teacher = draw(6, 9) * 3, draw(6, 9), draw(6, 9)
    labels = torch.tensor([0, 8, 3, 3, 5, 1])
    soft = torch.softmax(draw(6, 9) * 2, 1)
    # f32 tests read the same distribution: its rows must sum to one there too.
    soft = soft.float().double()
    flags = torch.rand(6, 9).double()
    for name, tensor in [
        ("logits", logits),
        ("student", student),
        ("teacher", teacher),
        ("labels", labels),
        ("soft", soft),
        ("flags", flags),
    ]:
        put(f"in.{name}", tensor)
    for smoothing in [0.1, 0.5]:
        loss(
            f"cross_entropy_{smoothing}",
            logits,
            lambda x: F.cross_entropy(x, labels, label_smoothing=smoothing),
        )
    loss("cross_entropy_sum", logits, lambda x: F.cross_entropy(x, labels, reduction="sum"))
    loss("soft_cross_entropy", logits, lambda x: F.cross_entropy(x, soft))
    loss("bce", logits, lambda x: F.binary_cross_entropy_with_logits(x, flags))
    loss(
        "bce_sum", logits, lambda x: F.binary_cross_entropy_with_logits(x, flags, reduction="sum")
    )
    loss("cosine", student, lambda x: (1 - F.cosine_similarity(x, teacher)).mean())
    for beta in [0.3, 2.0]:
        loss(f"smooth_l1_{beta}", student, lambda x: F.smooth_l1_loss(x, teacher, beta=beta))
    loss("mse_sum", student, lambda x: F.mse_loss(x, teacher, reduction="sum"))
    loss("token_l2", student, lambda x: (x - teacher).norm(dim=1).mean())
    put("log_softmax", F.log_softmax(logits, 1))


def pca(s):
    values, vectors = torch.linalg.eigh(s)
    values, vectors = values.flip(0), vectors.flip(1)
    top = vectors.detach().abs().argmax(0)
    signs = vectors.detach()[top, torch.arange(len(top))].sign()
    return (vectors * signs / values.sqrt()).T


def iternorm(iterations):
    def matrix(s):
        trace = s.diagonal().sum()
        p = torch.eye(len(s), dtype=s.dtype)
        for _ in range(iterations):
            p = 1.5 * p - 0.5 * p @ p @ p @ (s / trace)
        return p / trace.sqrt()

    return matrix


def whitenings():
    rows, width, eps = 40, 6, 1e-4
    x = draw(rows, width) @ (torch.eye(width).double() + 0.5 * draw(width, width)) + draw(width)
    x = x.float().double()
    cot = draw(rows, width)
    put("whiten.x", x)
    put("whiten.cot", cot)
    put("whiten.eps", torch.tensor(eps, dtype=torch.float64))
    for name, matrix in [("pca", pca), ("iternorm5", iternorm(5)), ("iternorm9", iternorm(9))]:
        leaf = x.clone().requires_grad_()
        centred = leaf - leaf.mean(0)
        s = (1 - eps) * centred.T @ centred / (rows - 1) + eps * torch.eye(width).double()
        y = centred @ matrix(s).T
        (y * cot).sum().backward()
        put(f"whiten.{name}.y", y)
        put(f"whiten.{name}.grad", leaf.grad)


losses()
whitenings()
save_file(out, pathlib.Path(__file__).with_name("norm_loss.safetensors"))
