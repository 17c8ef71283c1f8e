"""Parts 6, 8 and 9 of the GPU acceptance: launches of a step, the loader, the evaluation."""

import collections
import gzip
import json
import re
import shutil
import sys

import gpu_trace
from gpu_correctness import losses, train_command
from gpu_rows import BIN, DEVICE, GPU, KIT, OUT, WORK, ending, json_line, row, run

# Traces above this size in bytes are not kept.
FILE_LIMIT = 15 << 20


def step_command(batch, height, width, precision, steps):
    """The bench `step` in the configuration that this device is measured with."""
    return [
        BIN / "step",
        "--bench",
        "--device",
        DEVICE,
        "--precision",
        precision,
        "--steps",
        steps,
        "--config",
        "dw_r50_fpn_1x" if GPU else "smoke",
        "--threads",
        4 if GPU else 2,
        "--batch",
        batch,
        "--height",
        height,
        "--width",
        width,
    ]


def launches():
    """Waits a step by the bench's own count, and everything that a trace shows."""
    part = "6 synchronisations and launches"
    gpu_trace.selftest()
    sizes = [(2, 800, 1344), (16, 800, 1344)] if GPU else [(1, 96, 128)]
    for size in sizes:
        name = " x ".join(map(str, size))
        command = step_command(*size, "bf16" if GPU else "f32", 5)
        code, text, seconds = run([*command, "--count-syncs"], 90)
        found = json_line(text, "dw step") or {}
        syncs = found.get("syncs_per_step")
        ok = code == 0 and syncs == 0 and found.get("kernels") is True
        row(
            part,
            f"no waits in a step, own kernels in use, {name}",
            ok if GPU or code != 0 else None,
            seconds,
            syncs_per_step=syncs,
            kernels=found.get("kernels"),
            precision=found.get("precision"),
            why=ending(code, text) if code != 0 else None if GPU else "DEVICE=cpu",
        )
        trace(part, name, command)


def trace(part, name, command):
    """Counts from a trace of the bench; the trace is kept where it is small enough."""
    file = WORK / "trace.json"
    file.unlink(missing_ok=True)
    code, text, seconds = run([*command, "--trace", file], 120)
    if code != 0 or not file.exists():
        row(part, f"trace, {name}", False, seconds, why=ending(code, text))
        return
    told = (json_line(text, "dw step") or {}).get("trace_steps")
    try:
        events = gpu_trace.read(file)
    except (ValueError, KeyError) as e:
        row(part, f"trace, {name}", False, seconds, why=f"the trace cannot be read: {e!r}"[:200])
        return
    found, kernels, waits = gpu_trace.measure(events, told)
    lacking = [what for what in ("host_ops", "kernels") if not found[what]]
    # A trace of the CPU alone has host operations, but no kernels.
    unusable = lacking if GPU else set(lacking) - {"kernels"}
    row(
        part,
        f"trace, {name}",
        False if unusable else True if GPU else None,
        seconds,
        **found,
        why=f"no {' and no '.join(lacking)} in the trace" if lacking else None,
        lines=[*waits, *kernels],
    )
    kept = OUT / f"trace-{name.replace(' ', '')}.json.gz"
    with open(file, "rb") as plain, gzip.open(kept, "wb", 6) as packed:
        shutil.copyfileobj(plain, packed)
    if kept.stat().st_size > FILE_LIMIT:
        print(f"{kept}: {kept.stat().st_size} bytes, too large to keep")
        kept.unlink()


def loader():
    """Images a second from shards to network input, by threads, for both codecs."""
    part = "8 loader"
    packs = {"jpeg": KIT / "photos"}
    code, text, seconds = run([BIN / "dw-pack", "export", KIT / "photos", WORK / "coco"], 60)
    if code == 0:
        command = [BIN / "dw-pack", WORK / "coco", "-o", WORK / "shards", "--pixels", "zstd"]
        code, text, seconds = run(command, 60)
    if code == 0:
        packs["zstd"] = WORK / "shards"
    row(
        part,
        "shards exported and packed as zstd",
        code == 0,
        seconds,
        **({} if code == 0 else {"why": ending(code, text)}),
    )
    for codec, data in packs.items():
        for threads in (4, 8, 16) if GPU else (1, 2):
            command = [
                BIN / "loader",
                "--bench",
                "--data",
                data,
                "--threads",
                threads,
                "--steps",
                128 if GPU else 8,
            ]
            code, text, seconds = run(command, 60)
            found = json_line(text, "dw loader") or {}
            keys = ("images_per_s", "lowest", "highest", "images_per_cpu_s", "first_batch_s")
            row(
                part,
                f"800 x 1333, {codec}, {threads} threads",
                code == 0 and bool(found),
                seconds,
                **{k: found.get(k) for k in keys},
                **({} if code == 0 else {"why": ending(code, text)}),
            )


def evaluate(work, device, *more):
    """dw-eval of a run on the validation split.

    Returns its numbers (None: it failed), detections, images/s, seconds, and why it failed.
    """
    file = WORK / f"detections-{device}.json"
    file.unlink(missing_ok=True)
    command = [
        BIN / "dw-eval",
        work,
        "--device",
        device,
        "--data",
        KIT / "photos",
        "--json",
        "--dt-out",
        file,
    ]
    code, text, seconds = run([*command, *more], 120)
    numbers = json_line(text)
    rate = re.search(r"\(([0-9.]+) images/s\)", text)
    if code != 0 or numbers is None or not file.exists():
        return None, [], 0.0, seconds, ending(code, text)
    return numbers, json.loads(file.read_text()), float(rate[1]) if rate else 0.0, seconds, ""


def overlap(a, b):
    """IoU of two boxes [x, y, w, h]."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inside = max(w, 0.0) * max(h, 0.0)
    return inside / (a[2] * a[3] + b[2] * b[3] - inside) if inside else 0.0


def agreement(found, expected):
    """Share of detections with an equal one: image, class, IoU above 0.99, score within 1e-3."""
    places = collections.defaultdict(list)
    for d in found:
        places[d["image_id"], d["category_id"]].append(d)

    def same(a, b):
        return abs(a["score"] - b["score"]) <= 1e-3 and overlap(a["bbox"], b["bbox"]) > 0.99

    met = sum(any(same(e, d) for d in places[e["image_id"], e["category_id"]]) for e in expected)
    return met / max(len(expected), len(found), 1)


def trained():
    """The run of part 4, or the same one made anew; a reason where there is none."""
    work = WORK / "run-f32"
    if not losses(work / "metrics.jsonl")[0]:
        code, text, _ = run(train_command("run-f32"), 120)
        if code != 0:
            return work, ending(code, text)
    return work, ""


def evaluation():
    """The same weights on both devices; then the rate of the large network."""
    part = "9 evaluation"
    work, why = trained()
    if why:
        row(part, "weights to evaluate", False, why=why)
        return
    # After 30 steps the network has no score above the default threshold.
    sets = ["--set", "eval.score_threshold=0.0"]
    expected, there, cpu_rate, seconds, why = evaluate(work, "cpu", *sets)
    row(
        part,
        "dw-eval on the CPU",
        expected is not None,
        seconds,
        images_per_s=cpu_rate,
        detections=len(there),
        AP=(expected or {}).get("AP"),
        **({"why": why} if why else {}),
    )
    if not GPU:
        row(part, "dw-eval on the GPU", None, why="DEVICE=cpu")
        assert agreement(there, there) == 1.0, "detections agree with themselves"
        return
    found, here, rate, seconds, why = evaluate(work, "cuda", *sets)
    if found is None or expected is None:
        row(part, "dw-eval on the GPU", False, seconds, why=why)
        return
    off, share = abs(found["AP"] - expected["AP"]), agreement(here, there)
    row(
        part,
        "dw-eval on the GPU",
        off <= 1e-3 and share >= 0.95 and bool(here),
        seconds,
        images_per_s=rate,
        detections=len(here),
        AP=found["AP"],
        AP_off=off,
        equal_detections=share,
    )
    large(part)


def large(part):
    """Images a second of R-50 at 800 x 1333, one and eight at a time, with any weights."""
    sets = ["--set", "train.max_steps=1", "--set", "eval.every_epochs=0", "--init", "random"]
    command = [
        BIN / "dw-train",
        "dw_r50_fpn_1x",
        "--device",
        DEVICE,
        "--data",
        KIT / "photos",
        "--work-dir",
        WORK / "large",
        *sets,
    ]
    code, text, seconds = run(command, 120)
    if code != 0:
        row(part, "R-50, one step for its weights", False, seconds, why=ending(code, text))
        return
    for batch in (1, 8):
        found, _, rate, seconds, why = evaluate(WORK / "large", DEVICE, "--batch", batch)
        row(
            part,
            f"R-50 at 800 x 1333, batch {batch}",
            found is not None,
            seconds,
            images_per_s=rate,
            **({"why": why} if why else {}),
        )


if __name__ == "__main__":
    {"launches": launches, "loader": loader, "evaluation": evaluation}[sys.argv[1]]()
