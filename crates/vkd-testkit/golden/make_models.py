"""Writes models.safetensors, four model_*.pth and model_keys.txt beside itself; needs torch, timm and torchvision.

Narrow classifiers built from timm's and torchvision's own classes, with every weight, gain and running statistic drawn at
random. The weights lie in the .pth files as `torch.save` writes a state dict. Weights and inputs are exact f32 values; the
results are of f64, rounded to f32 once. Per model NAME:

  NAME.input, NAME.cot        images (B, 3, H, W) and fixed weights of the logits
  NAME.eval.logits            and NAME.eval.TAP, in evaluation mode; two heads have NAME.eval.distillation_logits
  NAME.train.logits           in training mode, from the same weights
  NAME.train.grad.KEY         of sum(cot * train.logits) (of both heads' sum), for every parameter or the ones named below
  NAME.train.after.KEY        running statistics after that one pass

model_keys.txt lists key and shape of every tensor of the full-size models, as timm names them, and the multiply-adds of one
image of 224 pixels in convolutions and linear maps (counted where they run: attention's own products are not in it).
"""

from functools import partial
from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models import deit, efficientnet, regnet
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from torch import nn

HERE = Path(__file__).parent
CLASSES = 5
OUT = {}


def narrow_resnet(block, depths, width):
    net = torchvision.models.ResNet(block, depths)
    net.inplanes = width
    net.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    net.bn1 = nn.BatchNorm2d(width)
    for i, depth in enumerate(depths):
        stage = net._make_layer(block, width * 2**i, depth, stride=1 if i == 0 else 2)
        setattr(net, f"layer{i + 1}", stage)
    net.fc = nn.Linear(8 * width * block.expansion, CLASSES)
    return net


def narrow_lite(multiple, stem, head):
    # The table of EfficientNet-Lite0.
    table = [["ds_r1_k3_s1_e1_c16"], ["ir_r2_k3_s2_e6_c24"], ["ir_r2_k5_s2_e6_c40"], ["ir_r3_k3_s2_e6_c80"],
             ["ir_r3_k5_s1_e6_c112"], ["ir_r4_k5_s2_e6_c192"], ["ir_r1_k3_s1_e6_c320"]]
    return efficientnet.EfficientNet(
        decode_arch_def(table, 1.0, fix_first_last=True), CLASSES, head, 3, stem, fix_stem=True,
        round_chs_fn=partial(round_channels, multiplier=multiple), act_layer=nn.ReLU6,
    )


def draw(net):
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            fan = module.weight[0].numel()
            nn.init.normal_(module.weight, 0, (1.5 / fan) ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.2)
    for key, value in net.named_parameters():
        if key.endswith(("_token", "pos_embed")):
            nn.init.normal_(value, 0, 0.5)


def record(name, net, image, taps, grads=(), after=()):
    draw(net)
    torch.save(net.state_dict(), HERE / f"model_{name}.pth")
    net = net.double()
    put = lambda key, value: OUT.__setitem__(f"{name}.{key}", value.detach().float().contiguous())
    x, cot = torch.randn(2, 3, image, image), torch.randn(2, CLASSES)
    put("input", x)
    put("cot", cot)
    seen = {}
    for tap, (module, cut) in taps.items():
        net.get_submodule(module).register_forward_hook(
            lambda _m, _i, out, tap=tap, cut=cut: seen.__setitem__(tap, cut(out))
        )
    net.eval()
    with torch.no_grad():
        if hasattr(net, "distilled_training"):
            net.set_distilled_training(True)
            net.train()  # Both heads; it has no dropout and no statistics.
            both = net(x.double())
            put("eval.logits", both[0])
            put("eval.distillation_logits", both[1])
        else:
            put("eval.logits", net(x.double()))
    for tap, value in seen.items():
        put(f"eval.{tap}", value)
    net.train()
    logits = net(x.double())
    logits = logits[0] + logits[1] if isinstance(logits, tuple) else logits
    put("train.logits", logits)
    (logits * cot.double()).sum().backward()
    for key in grads or dict(net.named_parameters()):
        put(f"train.grad.{key}", net.get_parameter(key).grad)
    for key in after:
        put(f"train.after.{key}", net.get_buffer(key))


def multiply_adds(net):
    count = []
    hook = lambda module, _inputs, out: count.append(out.numel() * module.weight[0].numel())
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(hook)
    net(torch.empty(1, 3, 224, 224, device="meta"))
    return sum(count)


def all_of(out):
    return out


if __name__ == "__main__":
    torch.manual_seed(6)
    torch.set_num_threads(1)
    stages = lambda names: {f"stage{i + 1}": (name, all_of) for i, name in enumerate(names)}
    resnet = torchvision.models.resnet
    record("resnet_basic", narrow_resnet(resnet.BasicBlock, [1, 2, 1, 1], 4), 64,
           stages([f"layer{i}" for i in range(1, 5)]) | {"pooled": ("avgpool", lambda y: y.flatten(1))},
           after=["layer4.0.bn2.running_var"])
    record("resnet_bottleneck", narrow_resnet(resnet.Bottleneck, [1, 2, 1, 1], 3), 64,
           stages([f"layer{i}" for i in range(1, 5)]))
    cfg = regnet.RegNetCfg(w0=8, wa=8.0, wm=1.6, group_size=4, depth=5, se_ratio=0.25, stem_width=6)
    net = regnet.RegNet(cfg, num_classes=CLASSES)
    print("regnet", [(len(list(s.children())), s.b1.conv3.conv.out_channels) for s in (net.s1, net.s2, net.s3, net.s4)])
    record("regnet", net, 64,
           stages([f"s{i}" for i in range(1, 5)]) | {"pooled": ("head.global_pool", all_of)},
           after=["s1.b1.conv1.bn.running_mean"])
    lite = narrow_lite(0.1, 8, 24)
    print("lite", [s[0].conv_pwl.out_channels for s in lite.blocks[1:]])
    record("efficientnet_lite", lite, 64,
           stages([f"blocks.{i}" for i in range(7)]) | {"pooled": ("global_pool", all_of)},
           ["conv_stem.weight", "blocks.0.0.conv_pw.weight", "blocks.2.1.bn2.weight", "blocks.2.1.conv_dw.weight",
            "blocks.5.0.conv_pwl.weight", "bn2.bias", "classifier.bias"], ["bn2.running_var"])
    vit = deit.VisionTransformerDistilled(img_size=32, patch_size=8, num_classes=CLASSES, embed_dim=12, depth=2, num_heads=2)
    record("deit", vit, 32,
           {"class_token": ("norm", lambda y: y[:, 0]), "distillation_token": ("norm", lambda y: y[:, 1]),
            "tokens": ("norm", lambda y: y[:, 2:]), "stem_tokens": ("patch_embed", all_of)})
    save_file(OUT, HERE / "models.safetensors")
    with open(HERE / "model_keys.txt", "w") as file:
        for name in ["regnety_160", "regnety_008", "resnet18", "resnet34", "resnet50", "efficientnet_lite0",
                     "deit_tiny_distilled_patch16_224"]:
            with torch.device("meta"):
                net = timm.create_model(name).eval()
            file.write(f"{name} multiply_adds {multiply_adds(net)}\n")
            for key, value in net.state_dict().items():
                if not key.endswith("num_batches_tracked"):
                    file.write(f"{name} {key} {'x'.join(map(str, value.shape))}\n")
