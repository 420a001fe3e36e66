"""Takes the parts of a recorded ViDT run that the tests of losses, matching and distillation need.

    python3 take_detection.py vidt_tiny.safetensors detection.safetensors

The first file is a run of roymiles/VkD (folder `vidt`, state of September 2024, derived from naver-ai/vidt) in miniature: torch 2.15.0,
f32 inputs and weights, computed in f64, rounded once. Plain Python, no packages: tensors are copied byte by byte.
"""

import json
import struct
import sys

PREFIXES = ("out.", "match.", "target.", "loss.", "distill.", "neck.level", "neck.mask", "neck.det_tokens", "decoder.hidden")
KEYS = ("input.image_sizes",)


def read(path):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        return header, file.read()


def wanted(key):
    projector = key.startswith("param.") and "_projector" in key
    return key in KEYS or key.startswith(PREFIXES) or projector


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
