"""Writes deit_step.safetensors beside itself; needs torch and timm.

One training step of a narrow `deit_*_distilled`: timm's model, PyTorch's losses, `orthogonal` with the Cayley map as projector,
AdamW. Four of six images have a label; the teacher is given as its logits and features. Weights and inputs are exact f32 values
(the projector's base is of f64); the results are of f64, rounded to f32 once.

  input.images, input.labels, input.teacher_logits, input.teacher_features
  param.NAME       as vkd names them: `student.` and timm's names, `projector.tokens.raw` and `.base`
  term.NAME, loss  before weights and with them (f64)
  grad.NAME        of the loss, for every parameter
  change.NAME      what the update adds to the parameter
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.models import deit
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal

CLASSES, WIDTH, TEACHER = 5, 12, 20
IMAGES, LABELS = 6, 4
SMOOTHING, TEMPERATURE, LOGITS, FEATURES = 0.1, 2.0, 0.7, 5.0
RATE, DECAY = 0.01, 0.05
FREE = ("cls_token", "dist_token", "pos_embed")


def draw(net):
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, 0, (1.5 / module.weight[0].numel()) ** 0.5)
            nn.init.normal_(module.bias, 0, 0.2)
    for key, value in net.named_parameters():
        if key in FREE:
            nn.init.normal_(value, 0, 0.5)


def projector():
    """A layer whose base is the product of the reflectors of its first columns, so that they alone decide it."""
    layer = orthogonal(nn.Linear(WIDTH, TEACHER, bias=False, dtype=torch.float64), orthogonal_map="cayley")
    columns = torch.linalg.qr(torch.randn(TEACHER, WIDTH, dtype=torch.float64)).Q
    reflectors, tau = torch.geqrf(columns)
    wide = torch.cat([reflectors, torch.zeros(TEACHER, TEACHER - WIDTH)], 1)
    full = torch.linalg.householder_product(wide, torch.cat([tau, torch.zeros(TEACHER - WIDTH)]))
    full[:, :WIDTH] = columns
    assert (full.T @ full - torch.eye(TEACHER)).abs().max() < 1e-14
    parts = layer.parametrizations.weight
    with torch.no_grad():
        parts[0].base.copy_(full)
        parts.original.copy_((0.2 * torch.randn(TEACHER, WIDTH)).tril(-1))
    return layer, columns


def main():
    torch.manual_seed(12)
    torch.set_num_threads(1)
    out = {}
    net = deit.VisionTransformerDistilled(
        img_size=32, patch_size=8, num_classes=CLASSES, embed_dim=WIDTH, depth=2, num_heads=2)
    draw(net)
    net = net.double()
    net.set_distilled_training(True)
    net.train()
    layer, columns = projector()
    images = torch.randn(IMAGES, 3, 32, 32).double()
    labels = torch.randint(0, CLASSES, (LABELS,))
    teacher_logits = (2 * torch.randn(IMAGES, CLASSES)).double()
    teacher_features = (3 * torch.randn(IMAGES, TEACHER) + 1).double()
    inputs = {"images": images, "labels": labels, "teacher_logits": teacher_logits, "teacher_features": teacher_features}
    out.update({f"input.{key}": value if value.dtype == torch.int64 else value.float() for key, value in inputs.items()})

    parameters = {f"student.{key}": value for key, value in net.named_parameters()}
    parameters["projector.tokens.raw"] = layer.parametrizations.weight.original
    before = {key: value.detach().clone() for key, value in parameters.items()}
    out.update({f"param.{key}": value.float() for key, value in before.items()})
    out["param.projector.tokens.base"] = columns.contiguous()

    seen = []
    net.norm.register_forward_hook(lambda _module, _inputs, tokens: seen.append(tokens[:, 2:].mean(1)))
    logits, distilled = net(images)
    terms = {
        "label": F.cross_entropy(logits[:LABELS], labels, label_smoothing=SMOOTHING),
        "logits": TEMPERATURE**2 * F.kl_div(
            F.log_softmax(distilled / TEMPERATURE, 1), F.log_softmax(teacher_logits / TEMPERATURE, 1),
            reduction="batchmean", log_target=True),
        "feature.tokens": F.smooth_l1_loss(layer(seen[0]), F.layer_norm(teacher_features, (TEACHER,))),
    }
    loss = terms["label"] + LOGITS * terms["logits"] + FEATURES * terms["feature.tokens"]
    out.update({f"term.{key}": value.detach() for key, value in terms.items()})
    out["loss"] = loss.detach()

    decays = lambda key, value: value.ndim > 1 and not key.startswith("projector.") and not key.removeprefix("student.").startswith(FREE)
    groups = [
        {"params": [p for k, p in parameters.items() if decays(k, p)], "weight_decay": DECAY},
        {"params": [p for k, p in parameters.items() if not decays(k, p)], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=RATE)
    loss.backward()
    adamw.step()
    out.update({f"grad.{key}": value.grad.float() for key, value in parameters.items()})
    out.update({f"change.{key}": (value.detach() - before[key]).float() for key, value in parameters.items()})
    save_file({key: value.contiguous() for key, value in out.items()}, Path(__file__).with_name("deit_step.safetensors"))
    print(len(parameters), {key: value.item() for key, value in terms.items()}, loss.item())


main()
