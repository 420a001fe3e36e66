"""Writes images.safetensors beside itself; needs Pillow 13, numpy and safetensors.

What Pillow makes of two small images of noise over a gradient: resizes, crops that are resized, blurs, changes of colour and
moves. Per case `NAME.y`; the numbers that a case was made with stand in its name where the test reads them, else in the test.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from safetensors.numpy import save_file

rng = np.random.default_rng(7)
OUT = {}


def draw(height, width):
    """A gradient, a hard edge, and noise: smooth parts, steps and detail."""
    y, x = np.mgrid[0:height, 0:width]
    ramp = np.stack([x * 255 / width, y * 255 / height, (x + y) % 64 * 3], -1)
    ramp[height // 3 : height // 2, width // 4 :] = [250, 5, 128]
    return np.clip(ramp + rng.normal(0, 25, ramp.shape), 0, 255).astype(np.uint8)


def record(name, image):
    OUT[f"{name}.y"] = np.ascontiguousarray(np.asarray(image))


def resize(image, width, height):
    """One call: Pillow 13 chooses the order of the passes by the sizes; up to 12 rows always came first."""
    return image.resize((width, height), Image.BICUBIC)


color = Image.fromarray(draw(37, 53))
grey = Image.fromarray(draw(20, 17)).convert("L")
OUT["color"], OUT["grey"] = np.asarray(color), np.asarray(grey)

for width, height in [(24, 24), (53, 20), (80, 91), (7, 60), (1, 1)]:
    record(f"resize.color.{width}.{height}", resize(color, width, height))
    record(f"resize.grey.{width}.{height}", resize(grey, width, height))
for left, top, width, height in [(5, 3, 30, 31), (20, 10, 33, 9), (0, 0, 11, 37)]:
    box = (left, top, left + width, top + height)
    crop = resize(color.crop(box), 16, 16)
    record(f"crop.{left}.{top}.{width}.{height}", crop)

for tenths in [1, 5, 8, 13, 20, 60]:
    record(f"blur.{tenths}", color.filter(ImageFilter.GaussianBlur(tenths / 10)))

record("luma", color.convert("L"))
record("solarize.128", ImageOps.solarize(color, 128))
record("solarize.77", ImageOps.solarize(color, 77))
record("autocontrast", ImageOps.autocontrast(color.point(lambda v: 40 + v // 3)))
record("equalize", ImageOps.equalize(color))
for name, enhance in [
    ("brightness", ImageEnhance.Brightness),
    ("contrast", ImageEnhance.Contrast),
    ("saturation", ImageEnhance.Color),
    ("sharpness", ImageEnhance.Sharpness),
]:
    for hundredths in [0, 35, 145, 190]:
        record(f"{name}.{hundredths}", enhance(color).enhance(hundredths / 100))

fill = (124, 116, 104)
for degrees in [-27, 13, 90]:
    turned = color.rotate(degrees, resample=Image.BICUBIC, fillcolor=fill)
    record(f"rotate.{degrees}", turned)
moves = {
    "shear_x": (1, 0.27, 0, 0, 1, 0),
    "shear_y": (1, 0, 0, -0.27, 1, 0),
    "translate_x": (1, 0, -7.42, 0, 1, 0),
    "translate_y": (1, 0, 0, 0, 1, 11.1),
}
for name, matrix in moves.items():
    record(name, color.transform(color.size, Image.AFFINE, matrix, Image.BICUBIC, fillcolor=fill))

save_file(OUT, Path(__file__).with_name("images.safetensors"))
