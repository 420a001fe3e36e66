"""Times a GAN's steps in torch and the Fréchet distance as FID's users compute it.

Request: {"op": "discriminator_step" | "generator_step", "shape": [batch, side, width], "threads": 2, "budget_s": 2.0}
         {"op": "frechet", "shape": [rows, width], ...}
Answer:  {"peer", "peer_median_s", "peer_repeats", "peer_residual"} or {"error"}.

As benches/gan.rs: BigGAN's networks for 32 x 32 images with spectral norm in both, class-conditional batch norm and a projection
discriminator; hinge loss, one backward pass, Adam with beta1 = 0. Spectral norm is written as BigGAN's code has it, one power iteration
a pass. The discriminator's step makes its images without gradients, the generator's takes none for the discriminator's weights.
The Fréchet distance has numpy's covariance in f64 and SciPy's square root of the product, whose real part counts.
Convolutions run channels-last, torch's faster layout here.
"""

import time

import numpy as np
import timing
import torch
from torch import nn
from torch.nn import functional as F

CLASSES, NOISE = 10, 128


class Spectral(nn.Module):
    """A weight over its largest singular value."""

    def __init__(self, *shape, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) * 0.02)
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.register_buffer("u", torch.randn(1, shape[0]))

    def normed(self):
        w = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(self.u @ w)
            u = F.normalize(v @ w.T)
            self.u.copy_(u)
        return self.weight / (v @ w.T @ u.T).squeeze()


class Conv(Spectral):
    def __init__(self, inner, outer, kernel):
        super().__init__(outer, inner, kernel, kernel)
        self.padding = kernel // 2

    def forward(self, x):
        return F.conv2d(x, self.normed(), self.bias, padding=self.padding)


class Linear(Spectral):
    def __init__(self, inner, outer):
        super().__init__(outer, inner)

    def forward(self, x):
        return F.linear(x, self.normed(), self.bias)


class ClassNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.gain, self.bias = nn.Embedding(CLASSES, width), nn.Embedding(CLASSES, width)

    def forward(self, x, y):
        gain, bias = 1 + self.gain(y), self.bias(y)
        return self.norm(x) * gain[:, :, None, None] + bias[:, :, None, None]


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = ClassNorm(width), ClassNorm(width)
        self.conv1, self.conv2, self.short = Conv(width, width, 3), Conv(width, width, 3), Conv(width, width, 1)

    def forward(self, x, y):
        h = self.conv1(F.interpolate(F.relu(self.norm1(x, y)), scale_factor=2))
        h = self.conv2(F.relu(self.norm2(h, y)))
        # A 1 x 1 convolution of copies is the copy of the convolution.
        return h + F.interpolate(self.short(x), scale_factor=2)


class Generator(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width, self.linear = width, Linear(NOISE, width * 16)
        self.blocks = nn.ModuleList(Up(width) for _ in range(3))
        self.norm, self.out = nn.BatchNorm2d(width), Conv(width, 3, 3)

    def forward(self, z, y):
        x = self.linear(z).view(len(z), self.width, 4, 4).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x, y)
        return torch.tanh(self.out(F.relu(self.norm(x))))


class Down(nn.Module):
    def __init__(self, inner, width, halves, first=False):
        super().__init__()
        self.halves, self.first = halves, first
        self.conv1, self.conv2 = Conv(inner, width, 3), Conv(width, width, 3)
        self.short = Conv(inner, width, 1) if halves or inner != width else nn.Identity()

    def forward(self, x):
        smaller = (lambda t: F.avg_pool2d(t, 2)) if self.halves else (lambda t: t)
        h = self.conv1(x if self.first else F.relu(x))
        return smaller(self.conv2(F.relu(h))) + self.short(smaller(x))


class Discriminator(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.blocks = nn.Sequential(
            Down(3, width, True, True), Down(width, width, True), Down(width, width, False), Down(width, width, False)
        )
        self.linear, self.embed = Linear(width, 1), Spectral(CLASSES, width, bias=False)

    def forward(self, x, y):
        h = F.relu(self.blocks(x)).sum((2, 3))
        return self.linear(h).squeeze(1) + (F.embedding(y, self.embed.normed()) * h).sum(1)


def steps(req, dtype):
    batch, side, width = req["shape"]
    generator = Generator(width).to(memory_format=torch.channels_last)
    discriminator = Discriminator(width).to(memory_format=torch.channels_last)
    real = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    y = torch.arange(batch) % CLASSES
    of_generator = req["op"] == "generator_step"
    trained = generator if of_generator else discriminator
    optimizer = torch.optim.Adam(trained.parameters(), lr=2e-4, betas=(0.0, 0.999), fused=True)
    if of_generator:
        discriminator.requires_grad_(False)

    def once(samples=None):
        labels = y[:samples]
        z = torch.randn(len(labels), NOISE)
        if of_generator:
            loss = -discriminator(generator(z, labels), labels).mean()
        else:
            with torch.no_grad():
                made = generator(z, labels)
            scores = discriminator(torch.cat((real[:samples], made)), torch.cat((labels, labels)))
            a, b = scores.chunk(2)
            loss = F.relu(1 - a).mean() + F.relu(1 + b).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once


def frechet(req):
    from scipy import linalg

    rows, width = req["shape"]
    generator = np.random.default_rng(0)
    real, made = (generator.uniform(-s, s, (rows, width)).astype(np.float32) for s in (1.0, 1.2))
    mean, covariance = real.mean(0, dtype=np.float64), np.cov(real, rowvar=False, dtype=np.float64)

    def once(samples=None):
        m, c = made.mean(0, dtype=np.float64), np.cov(made, rowvar=False, dtype=np.float64)
        root = linalg.sqrtm(covariance @ c).real
        return float(((mean - m) ** 2).sum() + np.trace(covariance + c - 2 * root))

    return once


def measure(req):
    dtype = timing.start(req)
    step = frechet(req) if req["op"] == "frechet" else steps(req, dtype)

    def once():
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    if req["op"] == "frechet":
        # Half a minute a pass.
        median, repeats = timing.timed(once, 0, 1.0, 1)
        return timing.answer("numpy and SciPy sqrtm", median, repeats)
    budget, most = float(req.get("budget_s", 2.0)), int(req.get("max_repeats", 300))
    median, repeats = timing.timed(once, 2, max(budget, 10.0), most)
    return timing.answer(req["op"] + timing.peak(req), median, repeats)


timing.serve(measure, steps)
