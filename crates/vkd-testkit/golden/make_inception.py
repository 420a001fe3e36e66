"""Writes inception.safetensors and inception_keys.txt beside itself; needs torch and torchvision.

Inception-v3 at full size in two variants: `torchvision`, and `fid`, which is the same network as the FID of 2015-12-05 has it: 1008
classes, the average pools of the blocks 5b to 7b leave the padding out of their count, and the pool of block 7c is a maximum. No weight is
stored: each is a function of its key and its place (`uniform` and `weights` below, again in the test), and so is each image. All is computed
in f64 and rounded to f32 once. Per VARIANT:

  VARIANT.small.pooled, .logits   of two images of 75 pixels from -1 to 1, `uniform("small")`
  VARIANT.whole.pooled, .logits   of one image of 0 to 1, `uniform("whole")`, enlarged to 299 pixels as the variant's users do: torchvision's is
                                  3x32x32, then ImageNet's mean and deviation, which transform_input undoes; fid's is 1x28x28, repeated for
                                  three channels, then 2x - 1

inception_keys.txt lists key and shape of every tensor as torch names them, torchvision's auxiliary head too, and the multiply-adds of one
image of 299 pixels in convolutions and linear maps without it.
"""

from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models import inception

HERE = Path(__file__).parent
BLOCKS = ["5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b", "7c"]


def uniform(name, shape):
    """In [0, 1): FNV-1a of the name, then SplitMix64 at every place."""
    start = 0xCBF29CE484222325
    for byte in name.encode():
        start = (start ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(start) + np.arange(1, np.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def weights(key, shape):
    u = uniform(key, shape)
    if key.endswith("running_var"):
        return 0.5 + u
    if len(shape) > 1:
        # The bound of He's initial values.
        return (2 * u - 1) * (6 / np.prod(shape[1:])) ** 0.5
    gain = 1 if key.endswith("bn.weight") else 0
    return gain + 0.2 * (2 * u - 1)


def pooled_by(block, pool):
    """The block with another pool in its last branch."""
    forward = block.forward

    def patched(x):
        with mock.patch.object(F, "avg_pool2d", lambda x, **_: pool(x)):
            return forward(x)

    block.forward = patched


def build(variant):
    net = inception.inception_v3(
        weights=None, init_weights=False, aux_logits=variant == "torchvision", transform_input=variant == "torchvision",
        num_classes=1000 if variant == "torchvision" else 1008,
    )
    if variant == "fid":
        average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
        for name in BLOCKS:
            pooled_by(getattr(net, f"Mixed_{name}"), nn.MaxPool2d(3, 1, 1) if name == "7c" else average)
    return net.eval()


def multiply_adds(net):
    count = []
    hook = lambda module, _inputs, out: count.append(out.numel() * module.weight[0].numel())
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(hook)
    net(torch.empty(1, 3, 299, 299, device="meta"))
    return sum(count)


if __name__ == "__main__":
    out, lines = {}, []
    for variant in ["torchvision", "fid"]:
        with torch.device("meta"):
            net = build(variant)
        lines.append(f"{variant} multiply_adds {multiply_adds(net)}")
        for key, value in net.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                lines.append(f"{variant} {key} {'x'.join(map(str, value.shape))}")
        net = build(variant).double()
        state = net.state_dict()
        drawn = {k: weights(k, v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}
        net.load_state_dict(state | drawn)
        seen = {}
        net.avgpool.register_forward_hook(lambda _m, _i, y: seen.__setitem__("pooled", y.flatten(1)))

        def record(case, images):
            with torch.no_grad():
                logits = net(images)
            for name, value in [("pooled", seen["pooled"]), ("logits", logits)]:
                out[f"{variant}.{case}.{name}"] = value.float().contiguous()
                print(variant, case, name, list(value.shape), value.mean().item(), value.std().item())

        if variant == "torchvision":
            image = F.interpolate(uniform("whole", (1, 3, 32, 32)), size=(299, 299), mode="bilinear", align_corners=False)
            mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            shape = lambda values: torch.tensor(values, dtype=torch.float64)[None, :, None, None]
            record("whole", (image - shape(mean)) / shape(std))
            net.transform_input = False
        else:
            image = uniform("whole", (1, 1, 28, 28)).repeat(1, 3, 1, 1)
            record("whole", 2 * F.interpolate(image, size=(299, 299), mode="bilinear", align_corners=False) - 1)
        record("small", 2 * uniform("small", (2, 3, 75, 75)) - 1)
    save_file(out, HERE / "inception.safetensors")
    (HERE / "inception_keys.txt").write_text("\n".join(lines) + "\n")
