"""What the peers share: the timing of a pass, its memory, and one JSON answer for each request on stdin."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path


def start(req):
    """Threads, seed and dtype of a request to torch."""
    import torch  # here, as peers without it share this module

    torch.set_num_threads(int(req.get("threads", 2)))
    torch.manual_seed(0)
    return {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16}[req.get("dtype", "f32")]


def place(req):
    """A context in which tensors are made on the request's device. Not for what is timed: it costs every call some time."""
    import torch

    return torch.device(req.get("device", "cpu"))


def clock(req, work, reset=lambda: None):
    """A function that does `work`, after `reset`, and returns its seconds.

    A GPU's work is queued: there the clock stops when the queue is empty, and short work is done as often as fills two
    milliseconds.
    """
    if req.get("device", "cpu") == "cpu":

        def once():
            reset()
            begin = time.perf_counter()
            work()
            return time.perf_counter() - begin

        return once
    import torch

    torch.backends.cudnn.benchmark = True  # the fastest convolution for each size

    def passes(rounds):
        torch.cuda.synchronize(req["device"])
        begin = time.perf_counter()
        for _ in range(rounds):
            reset()
            work()
        torch.cuda.synchronize(req["device"])
        return (time.perf_counter() - begin) / rounds

    passes(1)  # loads kernels and takes memory
    rounds = min(200, max(1, round(2e-3 / passes(1))))
    return lambda: passes(rounds)


def timed(once, untimed, budget, most):
    """Median and number of passes of `once`, which returns seconds, after some that nobody counts."""
    for _ in range(untimed):
        once()
    times = []
    while not times or (len(times) < most and sum(times) < budget):
        times.append(once())
    return statistics.median(times), len(times)


def answer(name, median, repeats, residual=None, library=None):
    """The answer of a `library` with its version, by default torch."""
    if library is None:
        import torch

        library = "torch " + torch.__version__.split("+")[0]
    return {
        "peer": library + " " + name,
        "peer_median_s": median,
        "peer_repeats": repeats,
        "peer_residual": residual,
    }


def resident(key):
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def growth(once):
    """By how much one pass raises the resident memory at its peak.

    A pass over a single sample comes first: it makes what stays, an optimiser's state and the libraries' own memory.
    """
    once(1)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    once()
    return resident("VmHWM") - before


PEAKS = {}


def peak(req):
    """`growth` of the request in a fresh process of the same script, as text for the name; empty where there is no /proc.

    The process's allocator returns what is freed, unlike the one that is timed: what is kept for the next pass is no need
    of this one.
    """
    req = {key: value for key, value in req.items() if not key.endswith(("budget_s", "repeats"))}
    key = json.dumps(req, sort_keys=True)
    if key not in PEAKS and Path("/proc/self/clear_refs").exists():
        env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        command = [sys.executable, "-B", sys.argv[0], "--peak"]
        child = subprocess.run(command, input=key, capture_output=True, text=True, env=env, check=True)
        PEAKS[key] = f", peak {int(child.stdout) / 2**20:.1f} MiB"
    return PEAKS.get(key, "")


def serve(measure, steps=None):
    """Answers requests; with `--peak` the `growth` of the pass that `steps` makes of a single one."""
    if sys.argv[1:] == ["--peak"]:
        req = json.loads(sys.stdin.read())
        print(growth(steps(req, start(req))))
        return
    for line in sys.stdin:
        if line.strip():
            try:
                reply = measure(json.loads(line))
            except Exception as error:  # the asker decides what a failed work means
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), flush=True)
