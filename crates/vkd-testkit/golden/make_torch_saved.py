"""Writes torch_saved.pth, torch_saved.safetensors and torch_legacy.pth beside itself; needs torch and safetensors.

Tensors as `torch.save` writes them where their storage is not what they show: slices, steps, transposes, expansions,
channels-last and shared storages, every dtype that safetensors has too, and none of an element. `torch_saved.pth` is a whole
training state, `{"epoch", .., "best", "model", "ema": {"model"}, "double", "sparse"}`; the last two hold what can't be read. The
safetensors file holds what each tensor of `model` shows. `torch_legacy.pth` is the form from before torch 1.6, which is no zip.
"""

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent


def main():
    torch.manual_seed(3)
    whole = torch.randn(6, 5, 4)
    image = torch.randn(4, 3, 5, 2)
    state = OrderedDict()
    state["dense"] = whole
    state["slice.rows"] = whole[2:5]
    state["slice.columns"] = whole[:, 1:4]
    state["slice.step"] = whole[::2, :, 1::2]
    state["slice.last"] = whole[-1, -1, -1]
    state["transposed"] = whole[0].T
    state["permuted"] = whole.permute(2, 0, 1)
    state["expanded"] = torch.randn(3, 1, 2).expand(3, 4, 2)
    state["expanded.scalar"] = torch.tensor(2.5).expand(2, 3)
    state["channels_last"] = image.to(memory_format=torch.channels_last)
    state["channels_last.one"] = torch.randn(4, 1, 3, 3).to(memory_format=torch.channels_last)
    state["diagonal"] = torch.randn(4, 4).diagonal()
    state["empty"] = torch.zeros(0, 3)
    state["parameter"] = torch.nn.Parameter(torch.randn(2, 3).T)
    state["subclass"] = torch.nn.Buffer(torch.randn(3))
    for dtype in [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]:
        state[f"dtype.{str(dtype)[6:]}"] = torch.randn(4, 3).to(dtype)[1:].T
    for dtype in [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]:
        state[f"dtype.{str(dtype)[6:]}"] = torch.arange(1, 8).to(dtype)[1::2]
    state["dtype.bool"] = torch.tensor([True, False, True])
    state["dtype.complex64"] = torch.randn(3, dtype=torch.complex64)
    double = {"complex": torch.randn(2, dtype=torch.complex128), "fine": torch.ones(2)}
    sparse = {"sparse": torch.eye(3).to_sparse(), "fine": torch.ones(2)}
    ema = {"decay": 0.5, "model": OrderedDict(weight=torch.full((2,), 7.0))}
    # A seed of 64 bits and numbers of every size, as training states have them.
    best = torch.tensor(0.5)
    rest = {"epoch": 3, "seed": 2**64 - 1, "rate": 0.1, "names": ["a", ("b", None)], "best": best}
    parts = {"model": state, "ema": ema, "double": double, "sparse": sparse}
    torch.save({**rest, **parts}, HERE / "torch_saved.pth")
    shown = {key: value.detach().clone().contiguous() for key, value in state.items()}
    save_file(shown, HERE / "torch_saved.safetensors")
    legacy = {"weight": torch.ones(2)}
    torch.save(legacy, HERE / "torch_legacy.pth", _use_new_zipfile_serialization=False)


main()
