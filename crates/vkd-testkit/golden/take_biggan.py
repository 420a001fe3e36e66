"""Takes what the tests read from a recorded BigGAN run.

    python3 take_biggan.py biggan_tiny.safetensors biggan.safetensors

The first file is a run of cuikaiwen18/KD_DLGAN (state d7476b6) in miniature: torch 2.15.0, f32 inputs and weights, computed in f64.
Left out: activations within the networks, the gradients of images (those of the generator's weights pass through them), and
each augmentation alone on the square images. Plain Python, no packages: tensors are copied byte by byte.
"""

import json
import struct
import sys

ALONE = ("brightness", "saturation", "contrast", "translation", "cutout")


def read(path):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        return header, file.read()


def wanted(key):
    alone = any(key.startswith(f"diffaug.sq.{name}.") for name in ALONE)
    return not (alone or ".act." in key or key.endswith("g_loss.grad_images"))


def main(run, out):
    header, data = read(run)
    kept, parts, at = {"__metadata__": header["__metadata__"]}, [], 0
    for key in sorted(k for k in header if k != "__metadata__" and wanted(k)):
        start, end = header[key]["data_offsets"]
        kept[key] = {**header[key], "data_offsets": [at, at + end - start]}
        parts.append(data[start:end])
        at += end - start
    text = json.dumps(kept).encode()
    text += b" " * (-len(text) % 8)
    with open(out, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(parts))


main(*sys.argv[1:])
