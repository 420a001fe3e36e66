"""Times torch's whole distillation step, one JSON request a line on stdin.

Request: {"op": "vkd_step|vkd_part", "features": true, "shape": [batch, side], "threads": 2, "budget_s": 2.0,
          "max_repeats": 300, "dtype": "f32", "device": "cpu"}
Answer:  {"peer", "peer_median_s", "peer_repeats", "peer_residual"} or {"error"}.

As benches/step.rs: a RegNetY-160 teacher without gradients, a DeiT-Ti student with the convolutional
stem, cross entropy on the class head, KL on the distillation head and, with `features`, smooth-L1 of
the projected mean of the patch tokens against the layer-normed teacher's; backward and fused AdamW.
The projector is a Cayley map of rank 2k with a fixed base of k reflectors, written for this shape:
torch's own parametrisation works on the whole n x n matrix, and its time would hide everything else.
In bf16 the teacher is in bf16 whole, the student runs under autocast, and projector and losses stay f32.
`vkd_part` is what V_kD adds to the step: from the patch tokens and the teacher's pooled features to the loss and back.
Convolutions run channels-last, which is torch's faster layout here. `peer` also says by how much one step
raises the resident memory of a fresh process; see timing.py.
"""

import timing
import torch
from torch import nn
from torch.nn import functional as F

WIDTHS, DEPTHS, GROUP = (224, 448, 1232, 3024), (2, 4, 11, 1), 112


def conv_norm(inner, outer, kernel, stride=1, groups=1):
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer))


class RegNetBlock(nn.Module):
    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1 = conv_norm(inner, outer, 1)
        self.conv2 = conv_norm(outer, outer, 3, stride, outer // GROUP)
        squeezed = round(inner * 0.25)
        self.fc1, self.fc2 = nn.Conv2d(outer, squeezed, 1), nn.Conv2d(squeezed, outer, 1)
        self.conv3 = conv_norm(outer, outer, 1)
        shape_changes = inner != outer or stride != 1
        self.shortcut = conv_norm(inner, outer, 1, stride) if shape_changes else nn.Identity()

    def forward(self, x):
        y = F.relu(self.conv2(F.relu(self.conv1(x))))
        gate = self.fc2(F.relu(self.fc1(y.mean((2, 3), keepdim=True)))).sigmoid()
        return F.relu(self.conv3(y * gate) + self.shortcut(x))


class RegNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 32, 3, 2)
        blocks, inner = [], 32
        for outer, depth in zip(WIDTHS, DEPTHS):
            for i in range(depth):
                blocks.append(RegNetBlock(inner, outer, 2 if i == 0 else 1))
                inner = outer
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(inner, 1000)

    def forward(self, x):
        pooled = self.blocks(F.relu(self.stem(x))).mean((2, 3))
        return pooled, self.head(pooled)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        x = x + self.proj(y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Student(nn.Module):
    def __init__(self, side, width=192, depth=12, heads=3):
        super().__init__()
        stem = [conv_norm(3, 64, 7, 2), nn.ReLU()]
        for _ in range(2):
            stem += [conv_norm(64, 64, 3), nn.ReLU()]
        self.stem, self.patches = nn.Sequential(*stem), nn.Conv2d(64, width, 8, 8)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.pos = nn.Parameter(torch.zeros(1, (side // 16) ** 2 + 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head, self.head_dist = nn.Linear(width, 1000), nn.Linear(width, 1000)

    def forward(self, x):
        tokens = self.patches(self.stem(x)).flatten(2).transpose(1, 2)
        dist = tokens.mean(1, keepdim=True)
        x = torch.cat((self.cls.expand(len(x), -1, -1), dist, tokens), 1) + self.pos
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0]), self.head_dist(x[:, 1]), x[:, 2:].mean(1)


class Cayley(nn.Module):
    """W = H cay(A) E: A is skew with the free values in its first k columns, E the first k unit vectors, H the base."""

    def __init__(self, n, k):
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(n, k))
        v, tau = torch.geqrf(torch.randn(n, k))
        self.register_buffer("v", torch.tril(v, -1) + torch.eye(n, k))
        # The compact form of the k reflectors, H = I - V T Vt.
        gram = torch.triu(self.v.T @ self.v, 1) + torch.diag(1 / tau)
        self.register_buffer("t", torch.linalg.inv(gram))
        self.register_buffer("e", torch.eye(n, k))

    def forward(self):
        k = self.raw.shape[1]
        x = torch.tril(self.raw, -1)
        # With A = X Et - E Xt = U Vt of rank 2k, cay(A) E = E + U (I - Vt U / 2)^-1 Vt E.
        top = x[:k]
        gram, eye = x.T @ x, torch.eye(k, dtype=x.dtype, device=x.device)
        # V = [E, X], U = [X, -E]
        vu = torch.cat((torch.cat((top, -eye), 1), torch.cat((gram, -top.T), 1)), 0)
        ve = torch.cat((eye, top.T), 0)
        core = torch.linalg.solve(torch.eye(2 * k, dtype=x.dtype, device=x.device) - vu / 2, ve)
        w = self.e + x @ core[:k] - self.e @ core[k:]
        return w - self.v @ (self.t @ (self.v.T @ w))


def steps(req, dtype):
    """A function that does one step, of the whole batch or of its first samples, and one that says how far the projector is from orthonormal."""
    if req["op"] not in ("vkd_step", "vkd_part"):
        raise ValueError(f"unknown op {req['op']}")
    batch, side = req["shape"]
    # Variables are f32 whatever the networks compute in.
    half = dtype == torch.bfloat16
    single = torch.float32 if half else dtype
    projector = Cayley(WIDTHS[-1], 192).to(single)

    def residual():
        with torch.no_grad():
            w = projector().double()
        return (w.T @ w - torch.eye(w.shape[1], dtype=w.dtype, device=w.device)).abs().max().item()

    def matched(tokens, pooled):
        pooled = pooled.to(single)
        wanted = F.layer_norm(pooled, pooled.shape[1:])
        return F.smooth_l1_loss(tokens.to(single) @ projector().T, wanted)

    if req["op"] == "vkd_part":
        tokens = torch.rand(batch, (side // 16) ** 2, 192, dtype=dtype, requires_grad=True)
        pooled = torch.rand(batch, WIDTHS[-1], dtype=dtype)

        def part(samples=None):
            tokens.grad = projector.raw.grad = None
            matched(tokens[:samples].mean(1), pooled[:samples]).backward()

        return part, residual
    layout = {"memory_format": torch.channels_last}
    teacher = RegNet().eval().requires_grad_(False).to(dtype=dtype, **layout)
    student = Student(side).to(dtype=single, **layout)
    named = list(student.named_parameters())
    free = [p for name, p in named if p.dim() <= 1 or name in ("cls", "pos")]
    decayed = [p for name, p in named if p.dim() > 1 and name not in ("cls", "pos")]
    features = bool(req.get("features", True))
    groups = [
        {"params": decayed},
        {"params": free + ([projector.raw] if features else []), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05, fused=True)
    x = torch.rand(batch, 3, side, side, dtype=single).mul_(2).sub_(1)
    x = x.to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 1000

    def once(samples=None):
        with torch.no_grad():
            pooled, target = teacher(x[:samples].to(dtype))
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half):
            cls, dist, tokens = student(x[:samples])
        cls, dist, target = (logits.to(single) for logits in (cls, dist, target))
        loss = F.cross_entropy(cls, labels[:samples], label_smoothing=0.1)
        loss = loss + F.kl_div(
            dist.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True
        )
        if features:
            loss = loss + matched(tokens, pooled)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once, residual if features else lambda: None


def measure(req):
    dtype = timing.start(req)
    with timing.place(req):
        step, residual = steps(req, dtype)

    budget, most = float(req.get("budget_s", 2.0)), int(req.get("max_repeats", 300))
    on_cpu = req.get("device", "cpu") == "cpu"
    # On a CPU a step takes seconds: two that nobody counts, and at least five that count.
    least = 15.0 if on_cpu else budget
    median, repeats = timing.timed(timing.clock(req, step), 2, max(budget, least), most)
    peak = timing.peak(req) if on_cpu else ""
    return timing.answer(req["op"] + peak, median, repeats, residual())


timing.serve(measure, lambda req, dtype: steps(req, dtype)[0])
