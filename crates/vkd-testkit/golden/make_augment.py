"""Writes augment.safetensors beside itself; needs timm, torchvision, Pillow, numpy and safetensors.

What timm and torchvision make of one small image where nothing is left to chance: their generators are replaced by the numbers
that a case names.

  color                                       the image
  rand_augment.NAME.HUNDREDTHS.SIGN.INC.y     RandAugment's transform NAME at a magnitude, `neg` or `pos`, strengths that all grow
                                              (`inc`) or as first published (`old`)
  jitter.ORDER.y                              torchvision's changes of brightness (b), contrast (c) and saturation (s) in that order,
                                              by the factors of `jitter.factors`
  erase                                       rows of size, share of the area, logarithm of the ratio, height, width and largest top
                                              and left of timm's RandomErasing; zeros where the rectangle does not fit
"""

import itertools
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import functional as F

FILL = (124, 116, 104)
SIGNED = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
# The other strengths of these are of either sign only where all grow.
ENHANCE = {"Color", "Contrast", "Brightness", "Sharpness"}
LEVELS = {"AutoContrast", "Equalize", "Invert"}
OUT = {}


def draw(height, width):
    rng = np.random.default_rng(11)
    y, x = np.mgrid[0:height, 0:width]
    ramp = np.stack([x * 255 / width, y * 255 / height, (x + y) % 16 * 12 + 20], -1)
    ramp[height // 3 : height // 2, width // 4 :] = [250, 5, 128]
    return np.clip(ramp + rng.normal(0, 20, ramp.shape), 0, 255).astype(np.uint8)


def rand_augment(image):
    hparams = {"translate_pct": 0.45, "img_mean": FILL, "interpolation": Image.BICUBIC}
    for mode, names in [("inc", auto_augment._RAND_INCREASING_TRANSFORMS), ("old", auto_augment._RAND_TRANSFORMS)]:
        assert len(names) == 15
        for name in names:
            plain = name.removesuffix("Increasing")
            if mode == "old" and plain not in ENHANCE | {"Posterize", "Solarize"}:
                continue
            signed = plain in SIGNED or (plain in ENHANCE and mode == "inc")
            for hundredths in [900] if plain in LEVELS else [0, 137, 500, 912, 1000]:
                for sign in ["pos", "neg"] if signed else ["pos"]:
                    random.random = lambda: 0.9 if sign == "neg" else 0.1
                    op = auto_augment.AugmentOp(name, prob=1.0, magnitude=hundredths / 100, hparams=hparams)
                    key = f"rand_augment.{plain.removesuffix('Rel')}.{hundredths}.{sign}.{mode}.y"
                    if plain == "Posterize" and op.level_fn(op.magnitude, hparams)[0] == 0:
                        # No bit left: Pillow 13 refuses what was black before.
                        continue
                    OUT[key] = np.ascontiguousarray(np.asarray(op(image)))


def jitter(image):
    factors = {"b": 0.78, "c": 1.21, "s": 1.3}
    OUT["jitter.factors"] = np.array(list(factors.values()))
    changes = {"b": F.adjust_brightness, "c": F.adjust_contrast, "s": F.adjust_saturation}
    for order in itertools.permutations(factors):
        changed = image
        for change in order:
            changed = changes[change](changed, factors[change])
        OUT[f"jitter.{''.join(order)}.y"] = np.ascontiguousarray(np.asarray(changed))


def erase():
    rng, rows = np.random.default_rng(5), []
    eraser = RandomErasing(1.0, mode="const", device="cpu")
    low, high = eraser.log_aspect_ratio
    cases = [(float(s), r) for s in (eraser.min_area, eraser.max_area) for r in (low, 0.0, high)]
    cases += [(rng.uniform(0.02, 1 / 3), rng.uniform(low, high)) for _ in range(60)]
    for at, (share, ratio) in enumerate(cases):
        size = [224, 32, 28, 8, 9][at % 5]
        most = []
        drawn = itertools.cycle([share, ratio])
        random.random = lambda: 0.0
        random.uniform = lambda _low, _high: next(drawn)
        random.randint = lambda _low, high: most.append(high) or 0
        left = eraser(torch.ones(1, size, size))[0]
        gone = (left == 0).numpy()
        height, width = gone.any(1).sum(), gone.any(0).sum()
        assert gone.sum() == height * width
        rows.append([size, share, ratio, height, width, *(most or [0, 0])])
    OUT["erase"] = np.array(rows, dtype=np.float64)
    print("do not fit:", sum(1 for row in rows if row[3] == 0))


color = draw(17, 22)
OUT["color"] = color
rand_augment(Image.fromarray(color))
jitter(Image.fromarray(color))
erase()
save_file(OUT, Path(__file__).with_name("augment.safetensors"))
print(sum(key.endswith(".y") for key in OUT))
