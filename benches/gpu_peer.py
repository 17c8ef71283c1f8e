"""Parts 5 and 7 of the GPU acceptance: our step beside torchvision's FCOS, and the machine's peaks.

Both sides train R-50-FPN on prepared images of one size (those of torchvision enter behind its
resizing and normalisation): frozen batch norm, stem and stage 1 without gradients, 80 classes, P3
to P7, towers of four convolutions, SGD with momentum. The loss is FCOS's own; box refinement, which
our default network has, is not in torchvision's.
"""

import contextlib
import functools
import gc
import itertools
import os
import resource
import signal
import statistics
import sys
import time

from gpu_rows import DEVICE, GPU, ending, json_line, row, rows, run
from gpu_speed import step_command

STEP, PEAKS = "5 step against torchvision", "7 memory and peaks"
ROUNDS = 3
CLASSES, BOXES = 80, 8
BEGAN = time.monotonic()
SECONDS = float(os.environ.get("PART_SECONDS", "330"))
# Compilation has its own time limit. Without a GPU it is skipped unless COMPILE_SECONDS is set.
COMPILE_SECONDS = float(os.environ.get("COMPILE_SECONDS", "75" if GPU else "0"))

try:
    import torch
    import torchvision
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.image_list import ImageList
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    MISSING = ""
except ImportError as e:
    MISSING = f"python3 has no torch and torchvision: {e}"


def left():
    """Seconds of this part's time that are left, with some for its end."""
    return SECONDS - 10 - (time.monotonic() - BEGAN)


class TimeIsUp(Exception):
    """The alarm of `limited`."""


@contextlib.contextmanager
def limited(seconds):
    """Raises TimeIsUp in the main thread after some seconds."""

    def ring(*_):
        raise TimeIsUp(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def build():
    """torchvision's FCOS as a run of 12 epochs trains it."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return FCOS(backbone, CLASSES).train().to(DEVICE, memory_format=torch.channels_last)


def ground_truth(batch, height, width):
    """Boxes of the sizes that our bench draws: up to 0.4 of the picture's sides."""
    draw = torch.Generator().manual_seed(1)
    sides = torch.tensor([width, height])
    found = []
    for _ in range(batch):
        size = 16 + torch.rand(BOXES, 2, generator=draw) * 0.4 * sides
        corner = torch.rand(BOXES, 2, generator=draw) * (sides - size).clamp(min=1)
        labels = torch.randint(0, CLASSES, (BOXES,), generator=draw)
        found.append(
            {"boxes": torch.cat([corner, corner + size], 1).to(DEVICE), "labels": labels.to(DEVICE)}
        )
    return found


class Peer:
    """The network with its optimiser at one input size."""

    def __init__(self, batch, height, width):
        torch.manual_seed(0)
        self.net = build()
        weights = [p for p in self.net.parameters() if p.requires_grad]
        self.sgd = torch.optim.SGD(weights, lr=1e-5, momentum=0.9, weight_decay=1e-4, fused=True)
        images = torch.rand(batch, 3, height, width, device=DEVICE).contiguous(
            memory_format=torch.channels_last
        )
        self.images = ImageList(images, [(height, width)] * batch)
        self.truth = ground_truth(batch, height, width)
        self.forward = self.network

    def network(self, images):
        """What can be compiled: backbone, pyramid, head. The loss depends on the data."""
        features = list(self.net.backbone(images).values())
        return features, self.net.head(features)

    def step(self, mode):
        """Forward, loss, backward, update."""
        with torch.autocast(DEVICE, torch.bfloat16, enabled=mode == "bf16"):
            features, out = self.forward(self.images.tensors)
            anchors = self.net.anchor_generator(self.images, features)
            points = [f.shape[2] * f.shape[3] for f in features]
            loss = sum(self.net.compute_loss(self.truth, out, anchors, points).values())
        loss.backward()
        self.sgd.step()
        self.sgd.zero_grad(set_to_none=True)

    def measure(self, mode, steps, warmup=3):
        """Median and least seconds of a step, and the peak of the device's memory in MiB."""
        arithmetic(mode)
        for _ in range(warmup):
            self.step(mode)
        wait()
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        times = gpu_times(self.step, mode, steps) if GPU else cpu_times(self.step, mode, steps)
        peak = torch.cuda.max_memory_allocated() / 2**20 if GPU else None
        return {"median": statistics.median(times), "least": min(times), "device_peak_mib": peak}


def arithmetic(mode):
    """Kind of products in f32: IEEE, or tf32."""
    if GPU:
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode != "f32"


def wait():
    """Until the device has done what was asked of it."""
    if GPU:
        torch.cuda.synchronize()


def cpu_times(step, mode, steps):
    """Seconds of each step."""
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        step(mode)
        times.append(time.perf_counter() - began)
    return times


def gpu_times(step, mode, steps):
    """Seconds between the ends of consecutive steps. As in our bench the host does not wait."""
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    ends[0].record()
    for end in ends[1:]:
        step(mode)
        end.record()
    wait()
    return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(ends)]


def ours(size, mode, steps):
    """One run of our bench; raises with its last words."""
    if GPU:
        torch.cuda.empty_cache()
    code, text, _ = run(step_command(*size, mode, steps), min(120, left()))
    found = json_line(text, "dw step")
    if code != 0 or found is None:
        raise RuntimeError(ending(code, text))
    return {
        "median": found["step_s_median"],
        "least": found["step_s_min"],
        "peak_mib": found.get("peak_mib"),
        "device_peak_mib": found.get("device_peak_mib"),
        "syncs": found.get("syncs_per_step"),
        "parts": [found.get(f"{p}_s") for p in ("forward", "loss", "backward", "sgd")],
    }


def in_turns(sides, rounds=ROUNDS):
    """Runs sides in turns, so that a change of the machine's speed meets all of them.

    Returns the results and the errors by the sides' names.
    """
    results = {name: [] for name in sides}
    errors = {}
    for n in range(rounds):
        for name, measure in sides.items():
            if name in errors or (n > 0 and left() < 5):
                continue
            try:
                results[name].append(measure())
                print(f"round {n + 1}: {name}: {results[name][-1]}", flush=True)
            except Exception as e:  # any failure of one side becomes a row
                errors[name] = " ".join(f"{type(e).__name__}: {e}".split())[:200]
                print(f"round {n + 1}: {name}: {e}", flush=True)
    return results, errors


def report(size, results, errors):
    """A row for each side; theirs / ours where ours ran beside it in the same arithmetic.

    No ratio on the CPU, where our side is the small network of `smoke`.
    """
    name = " x ".join(map(str, size))
    middle = {
        c: statistics.median(r["median"] for r in all_) for c, all_ in results.items() if all_
    }
    for side, all_ in results.items():
        if not all_ or side in errors:
            row(STEP, f"{name}, {side}", False, why=errors.get(side, "no time left"))
            continue
        mode = side.split()[1]
        beside = middle.get(f"ours {mode}") if GPU and side.startswith("theirs") else None
        medians = [r["median"] for r in all_]
        row(
            STEP,
            f"{name}, {side}",
            True,
            step_s=middle[side],
            rounds=len(all_),
            lowest=min(medians),
            highest=max(medians),
            least_step=min(r["least"] for r in all_),
            images_per_s=size[0] / middle[side],
            device_peak_mib=all_[0].get("device_peak_mib"),
            peak_mib=all_[0].get("peak_mib"),
            theirs_over_ours=middle[side] / beside if beside else None,
            parts_s=all_[0].get("parts"),
        )


def compare():
    """Every size and arithmetic, eager; then compiled, with what time is left."""
    sizes = [(2, 800, 1344), (16, 800, 1344)] if GPU else [(1, 96, 128)]
    modes = ["tf32", "bf16"] if GPU else ["f32"]
    if MISSING:
        row(STEP, "torchvision FCOS", False if GPU else None, why=MISSING)
    else:
        print("torch", torch.__version__, "torchvision", torchvision.__version__)
        if not GPU:
            torch.set_num_threads(2)
    for size in sizes:
        eager(size, modes)
    for size in [] if MISSING else reversed(sizes):
        compiled(size, modes[-1])


def steps_of(size):
    """Steps of one measurement: fewer of those that take long."""
    return (20 if size[0] < 8 else 8) if GPU else 2


def built(size):
    """The peer at one size; None, with a row, where it cannot be had."""
    gc.collect()  # a peer refers to itself by its bound method
    try:
        return Peer(*size)
    except Exception as e:  # our side is measured even if this fails
        name = " x ".join(map(str, size))
        row(STEP, f"{name}, torchvision FCOS", False, why=" ".join(str(e).split())[:200])
        return None


def eager(size, modes):
    """Both sides at one size, in every arithmetic."""
    steps = steps_of(size)
    sides = {f"ours {m}": lambda m=m: ours(size, m, steps) for m in modes}
    peer = None if MISSING else built(size)
    if peer:
        # torchvision uses bf16 through autocast.
        sides |= {f"theirs {m}": lambda m=m: peer.measure(m, steps) for m in modes}
    report(size, *in_turns(sides))


def compiled(size, mode):
    """torch.compile'd at one size, beside ours and beside its own eager step."""
    name = f"{' x '.join(map(str, size))}, theirs {mode} compiled"
    if COMPILE_SECONDS <= 0 or left() < 30:
        why = "no time left" if GPU else "not compiled with DEVICE=cpu, but for COMPILE_SECONDS"
        row(STEP, name, None, why=why)
        return
    torch.compiler.reset()
    peer = built(size)
    if not peer:
        return
    peer.forward = torch.compile(peer.network, dynamic=False)
    steps = steps_of(size)
    began = time.monotonic()
    try:
        with limited(min(COMPILE_SECONDS, left() - 15)):
            peer.measure(mode, 1)
    except Exception as e:  # compilation can raise any exception
        row(STEP, name, None, time.monotonic() - began, why=f"compiling: {e}"[:200])
        return
    print(f"compiled for {mode} in {time.monotonic() - began:.1f} s", flush=True)
    sides = {
        f"ours {mode}": lambda: ours(size, mode, steps),
        f"theirs {mode} compiled": lambda: peer.measure(mode, steps),
    }
    report(size, *in_turns(sides))


def seconds_of(work, times=10):
    """Median seconds of an operation, the device's own clock where there is one."""
    for _ in range(3):
        work()
    wait()
    found = []
    for _ in range(times):
        if GPU:
            a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            a.record()
            work()
            b.record()
            b.synchronize()
            found.append(a.elapsed_time(b) / 1000)
        else:
            began = time.perf_counter()
            work()
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def products():
    """Peak of square matrix products, TFLOP/s."""
    n = 8192 if GPU else 512
    for mode in ("bf16", "tf32", "f32") if GPU else ("f32",):
        arithmetic(mode)
        kind = torch.bfloat16 if mode == "bf16" else torch.float32
        a, b = (torch.randn(n, n, device=DEVICE, dtype=kind) for _ in range(2))
        seconds = seconds_of(functools.partial(torch.mm, a, b, out=torch.empty_like(a)))
        row(PEAKS, f"matrix product {n}^3 in {mode}", True, tflops=2 * n**3 / seconds / 1e12)


def copies():
    """Peak of copies of 1 GiB, GB/s; within the device read and written bytes both count."""
    size = (1 << 30) if GPU else (1 << 24)
    host = torch.empty(size, dtype=torch.uint8, pin_memory=GPU)
    there = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    other = torch.empty_like(there)
    for name, to, source, factor in (
        ("host to device, pinned", there, host, 1),
        ("device to host, pinned", host, there, 1),
        ("within the device", other, there, 2),
    ):
        seconds = seconds_of(lambda to=to, source=source: to.copy_(source, non_blocking=True))
        row(PEAKS, f"copy {name}", True, gb_per_s=factor * size / seconds / 1e9)


def peaks():
    """Memory of the steps of part 5, and what the machine can do."""
    for r in rows():
        if r["part"] == STEP and r["ok"] and r.get("device_peak_mib"):
            row(PEAKS, f"memory: {r['check']}", True, device_peak_mib=r["device_peak_mib"])
    if MISSING:
        row(PEAKS, "matrix products and copies", False if GPU else None, why=MISSING)
        return
    products()
    copies()
    print(
        "largest resident memory of this process:",
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "MiB",
    )


if __name__ == "__main__":
    {"compare": compare, "peaks": peaks}[sys.argv[1]]()
