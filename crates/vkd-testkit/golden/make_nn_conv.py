"""Writes nn_conv.safetensors beside itself; needs torch and safetensors.

Convolutions, pools and resampling of torch in f64 from inputs drawn in f32, all images channels-last as `(B, H, W, C)`. Per
case: inputs `x`, `weight`, `bias`, numbers `config` in the order that tests/golden_conv.rs reads, the result `y`, `cot`,
and `grad.*` of `sum(y * cot)`.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

OUT = {}


def draw(*shape):
    return torch.randn(*shape).double().requires_grad_()


def first(x):
    return x.permute(0, 3, 1, 2)


def last(x):
    return x.permute(0, 2, 3, 1)


def record(name, config, forward, **inputs):
    y = forward()
    cot = torch.randn(y.shape).double()
    (y * cot).sum().backward()
    OUT[f"{name}.config"] = torch.tensor(config, dtype=torch.int64)
    # What was drawn in f32 is stored so: nothing is lost.
    OUT[f"{name}.y"], OUT[f"{name}.cot"] = y.detach(), cot.float()
    for key, value in inputs.items():
        OUT[f"{name}.{key}"] = value.detach().float()
        OUT[f"{name}.grad.{key}"] = value.grad


def conv(name, image, out, kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    x, bias = draw(*image), draw(out)
    weight = draw(out, image[3] // groups, *kernel)
    record(
        f"conv.{name}",
        [*stride, *padding, *dilation, groups],
        lambda: last(F.conv2d(first(x), weight, bias, stride, padding, dilation, groups)),
        x=x, weight=weight, bias=bias,
    )


def transposed(name, image, out, kernel, stride=(1, 1), padding=(0, 0), extra=(0, 0), dilation=(1, 1), groups=1):
    x, bias = draw(*image), draw(out)
    weight = draw(image[3], out // groups, *kernel)
    record(
        f"transposed.{name}",
        [*stride, *padding, *extra, *dilation, groups],
        lambda: last(F.conv_transpose2d(first(x), weight, bias, stride, padding, extra, groups, dilation)),
        x=x, weight=weight, bias=bias,
    )


def pool(name, image, kernel, stride, padding=(0, 0), ceil=False, ties=False):
    for kind in ("max", "avg", "avg_inside"):
        x = draw(*image)
        if ties:
            # Whole numbers from -1 to 1: most windows hold their maximum several times.
            x = x.detach().round().clamp(-1, 1).requires_grad_()
        if kind == "max":
            forward = lambda: last(F.max_pool2d(first(x), kernel, stride, padding, ceil_mode=ceil))
        else:
            forward = lambda: last(F.avg_pool2d(first(x), kernel, stride, padding, ceil, kind == "avg"))
        record(f"pool.{kind}.{name}", [*kernel, *stride, *padding, int(ceil)], forward, x=x)


def upsample(name, image, size):
    for mode, corners in (("nearest", None), ("bilinear", False), ("bilinear", True)):
        x = draw(*image)
        record(
            f"upsample.{mode}{'.corners' if corners else ''}.{name}",
            list(size),
            lambda: last(F.interpolate(first(x), size, mode=mode, align_corners=corners)),
            x=x,
        )


def shuffle(name, image, r):
    x = draw(*image)
    record(f"shuffle.{name}", [r], lambda: last(F.pixel_shuffle(first(x), r)), x=x)
    y = draw(image[0], image[1] * r, image[2] * r, image[3])
    record(f"unshuffle.{name}", [r], lambda: last(F.pixel_unshuffle(first(y), r)), x=y)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    conv("one", (1, 1, 1, 1), 1, (1, 1))
    conv("pointwise", (2, 3, 4, 7), 5, (1, 1))
    conv("padded", (2, 7, 5, 3), 4, (3, 3), padding=(1, 1))
    conv("wide", (1, 5, 17, 8), 3, (3, 2), padding=(2, 1))
    conv("strided", (2, 8, 7, 3), 4, (3, 3), (2, 3), (1, 0))
    conv("dilated", (1, 9, 8, 2), 3, (3, 2), padding=(2, 1), dilation=(2, 3))
    conv("groups", (1, 6, 5, 6), 4, (3, 3), (2, 1), (1, 1), groups=2)
    conv("depthwise", (2, 7, 5, 5), 5, (3, 3), padding=(1, 1), groups=5)
    conv("depthwise_strided", (1, 7, 8, 33), 33, (3, 2), (2, 2), (1, 1), groups=33)
    conv("multiplier", (1, 5, 5, 3), 6, (3, 3), padding=(1, 1), groups=3)
    transposed("one", (1, 1, 1, 1), 1, (1, 1))
    transposed("plain", (2, 5, 4, 3), 2, (3, 3), padding=(1, 1))
    transposed("strided", (1, 4, 5, 4), 3, (3, 2), (2, 3), (1, 0), (1, 2))
    transposed("dilated", (1, 4, 3, 2), 3, (3, 2), (2, 2), (1, 1), (1, 1), (2, 3))
    transposed("groups", (1, 4, 4, 6), 4, (2, 2), (2, 2), groups=2)
    pool("plain", (2, 6, 4, 3), (2, 2), (2, 2))
    pool("padded", (1, 7, 9, 5), (3, 3), (2, 2), (1, 1))
    pool("ceil", (1, 7, 8, 2), (3, 2), (2, 3), (1, 0), True)
    pool("ceil_cut", (1, 6, 5, 2), (2, 2), (3, 3), (1, 1), True)
    pool("ties", (1, 7, 7, 17), (3, 3), (2, 2), (1, 1), ties=True)
    pool("overlap", (1, 5, 5, 3), (3, 3), (1, 1), (1, 1), ties=True)
    upsample("double", (2, 3, 4, 3), (6, 8))
    upsample("odd", (1, 5, 3, 2), (7, 11))
    upsample("down", (1, 7, 9, 2), (3, 4))
    upsample("one", (1, 1, 1, 2), (3, 2))
    shuffle("two", (2, 2, 3, 8), 2)
    shuffle("three", (1, 1, 2, 9), 3)
    tensors = {key: value.contiguous() for key, value in OUT.items()}
    save_file(tensors, Path(__file__).parent / "nn_conv.safetensors", {"torch": torch.__version__})


main()
