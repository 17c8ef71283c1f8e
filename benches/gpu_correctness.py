"""Parts 1 to 4 of the GPU acceptance: the machine, the network, NCCL, training and how it ends."""

import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

from gpu_rows import BIN, DEVICE, GPU, KIT, WORK, ending, row, run

TRAIN = "4 training"
NETWORK_TRIALS = (
    "network_and_gradients_are_the_cpus",
    "out_of_memory_is_code_5",
    "training_follows_the_cpu",
    "bf16_gradients_point_where_the_cpus_in_f32_do",
    "own_kernels_are_used_and_right",
)
NCCL_TRIALS = (
    "nccl_joins_and_tests_itself",
    "nccl_keeps_what_one_rank_has",
    "nccl_abort_ends",
    "stream_order_of_two_ranks",
)
# The only trial if the device cannot be used: it fails with the reason.
NO_DEVICE = "the_device"
# The libtorch that the binaries were built for.
TORCH = "2.11.0"


def environment():
    """Driver and card, Python's torch, our programs' versions, the kit's revision."""
    part = "1 environment"
    if GPU:
        query = "name,driver_version,memory.total,power.limit,clocks.max.sm"
        code, text, seconds = run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], 30
        )
        row(
            part,
            "driver and card",
            code == 0,
            seconds,
            card=text.strip().splitlines()[-1:] or "none",
        )
    else:
        row(part, "driver and card", None, why="DEVICE=cpu")
    libtorch_version(part)
    code, text, seconds = run([BIN / "dw-train", "--version"], 120)
    row(part, "dw-train --version", code == 0, seconds, says=text.strip().splitlines()[:5])
    kit = json.loads((KIT / "kit.json").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    row(part, "kit", True, **kit, cores=len(os.sched_getaffinity(0)), memory_gib=memory)


def libtorch_version(part):
    """Python's torch must be the release of the binaries, which use its libraries."""
    folder = os.environ.get("TORCH_LIB", "")
    try:
        version = importlib.metadata.version("torch")
        row(
            part,
            "Python's torch",
            version.split("+")[0] == TORCH,
            version=version,
            libraries=folder,
        )
    except importlib.metadata.PackageNotFoundError:
        why = f"python3 has no torch; libtorch from {folder}"
        row(part, "Python's torch", False if GPU else None, why=why)


def libraries(part, text, needed):
    """The libraries that a process had loaded, from its lines `loaded: PATH`: each once."""
    # The text may follow the name of a test on the same line.
    paths = sorted(set(re.findall(r"loaded: (/.*)", text)))
    names = [pathlib.Path(p).name for p in paths]
    lacking = [n for n in needed if not any(name.startswith(n) for name in names)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if not paths and not GPU:
        row(part, "libraries loaded", None, why="the executable prints none")
    else:
        good = not lacking and not twice
        row(part, "libraries loaded", good, lacking=lacking, twice=twice, lines=paths)


def trial(part, name, listed, limit):
    """One trial of the `gpu` executable, in a process of its own: a crash ends no other."""
    if name not in listed:
        row(part, name, False if GPU else None, why="not a trial of this executable on this device")
        return ""
    command = [BIN / "gpu", "--exact", name, "--test-threads", "1"]
    code, text, seconds = run(command, limit, DW_DEVICE=DEVICE, DW_LOADED=1, DW_BIN=BIN)
    ignored = any(
        line.startswith("test ") and line.rstrip().endswith("ignored") for line in text.splitlines()
    )
    good = code == 0 and f"test {name} " in " ".join(text.split())
    if ignored:
        row(part, name, False if GPU else None, seconds, why="ignored by the executable")
    else:
        row(part, name, good, seconds, **({} if good else {"why": ending(code, text)}))
    return text


def trials():
    """The names of the `gpu` executable's trials on this device."""
    _, text, _ = run([BIN / "gpu", "--list"], 120, DW_DEVICE=DEVICE, DW_BIN=BIN)
    return {line.split(": ")[0].split()[-1] for line in text.splitlines() if ": " in line}


def network():
    """The network and its gradients against the CPU's, then the golden cases."""
    part = "2 network and goldens"
    listed = trials()
    if NO_DEVICE in listed:
        trial(part, NO_DEVICE, listed, 60)
    text = trial(part, NETWORK_TRIALS[0], listed, 60)
    cuda = ["libtorch_cuda", "libcudart", "libcudnn", "libcublas"]
    libraries(part, text, ["libtorch_cpu", *(cuda if GPU else [])])
    for name in NETWORK_TRIALS[1:]:
        trial(part, name, listed, 60)
    goldens(part)


def goldens(part):
    """Every golden case in both precisions, from the lines `golden KIND/CASE f32 ok`."""
    command = [BIN / "golden", "--test-threads", 1 if GPU else 2]
    env = {"DW_DEVICE": DEVICE, "DW_GOLDENS": KIT / "goldens", "DW_BIN": BIN}
    code, text, seconds = run(command, 180, **env)
    why = {} if code == 0 else {"why": ending(code, text)}
    lines = re.findall(r"golden (\S+) (f32|f64) (ok|FAILED.*)", text)
    for precision in ("f64", "f32"):
        results = [(case, said) for case, p, said in lines if p == precision]
        failed = [f"{case} {said[:160]}" for case, said in results if said != "ok"]
        good = code is not None and bool(results) and not failed
        numbers = {"cases": len(results), "failed": len(failed), "lines": failed}
        row(part, f"golden cases in {precision}", good, seconds, **numbers, **why)


def nccl():
    """NCCL with one rank, its end, and the order of work on two streams."""
    part = "3 NCCL and streams"
    listed = trials()
    for name in NCCL_TRIALS:
        text = trial(part, name, listed, 60)
        if name == NCCL_TRIALS[0] and GPU:
            libraries(part, text, ["libnccl"])
    known = {*NCCL_TRIALS, *NETWORK_TRIALS, NO_DEVICE}
    for name in sorted(listed - known):
        trial(part, name, listed, 60)


def train_command(name, *sets):
    """dw-train of the kit's configuration into a work directory of its own."""
    command = [
        BIN / "dw-train",
        KIT / "train.toml",
        "--device",
        DEVICE,
        "--data",
        KIT / "photos",
        "--work-dir",
        WORK / name,
    ]
    return command + [word for s in sets for word in ("--set", s)]


def losses(path):
    """Loss of each step, of a repeated one the later; and the rows."""
    found = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    steps = [r for r in found if "loss" in r]
    return {r["step"]: r["loss"] for r in steps}, steps


def deviation(found, expected):
    """Relative difference at the first step, and the largest of the others."""
    relative = {s: abs(found[s] / expected[s] - 1) for s in expected if s in found}
    return relative.get(1, 1.0), max((relative[s] for s in relative if s > 1), default=1.0)


def follow(precision, first, later):
    """Thirty steps against the CPU's losses in the kit."""
    name = f"run-{precision}"
    code, text, seconds = run(train_command(name, f"train.precision={precision}"), 120)
    expected, _ = losses(KIT / "cpu-losses.jsonl")
    found, steps = losses(WORK / name / "metrics.jsonl")
    a, b = deviation(found, expected)
    good = code == 0 and len(found) == len(expected) and a <= first and b <= later
    print(
        "losses:", " ".join(f"{s}:{found[s]:.6f}/{expected.get(s, 0):.6f}" for s in sorted(found))
    )
    why = {} if code == 0 else {"why": ending(code, text)}
    row(
        TRAIN,
        f"losses against the CPU's, {precision}",
        good,
        seconds,
        steps=len(found),
        step_1=a,
        later=b,
        limits=[first, later],
        loss=[found.get(1), found.get(len(expected))],
        step_s=sorted(s["step_s"] for s in steps)[len(steps) // 2] if steps else None,
        **why,
    )


def drill(fault, expected):
    """A fault of the trainer's own must end with its exit code."""
    command = train_command(f"drill-{fault}")
    code, text, seconds = run(command, 60, DW_FAULT=f"{fault}@0:5")
    row(
        TRAIN,
        f"{fault} at step 5 ends with code {expected}",
        code == expected,
        seconds,
        code=code,
        **({} if code == expected else {"why": ending(code, text)}),
    )


def training():
    """Losses, exit codes, and a run that is interrupted ten times."""
    follow("f32", 1e-3, 0.02)
    if GPU:
        # tf32 has 10 bits of mantissa in products; the errors grow over 30 steps.
        follow("tf32", 1e-2, 0.05)
        # bf16 has 7 bits of mantissa in all activations.
        follow("bf16", 2e-2, 0.05)
    else:
        row(TRAIN, "losses against the CPU's, tf32", None, why="DEVICE=cpu has no tf32")
    drill("oom", 5)
    drill("nan", 3)
    interruptions()


def catches(pid, number):
    """Whether a process has set up a handler for a signal; before that the signal would kill it."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next(
        (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0"
    )
    return bool(int(mask, 16) >> (number - 1) & 1)


def wait_for(done, job, limit):
    """Waits until something is so or the job has ended."""
    end = time.monotonic() + limit
    while not done() and job.poll() is None and time.monotonic() < end:
        time.sleep(0.002)


def interrupt(command, metrics, moment):
    """Starts the run and sends USR1; returns its exit code.

    `moment`: seconds after the program listens to the signal, or a step.
    """
    with (
        open(WORK / "interrupted.log", "ab") as log,
        subprocess.Popen([str(c) for c in command], stdout=log, stderr=log) as job,
    ):
        wait_for(lambda: catches(job.pid, signal.SIGUSR1), job, 60)
        if isinstance(moment, float):
            time.sleep(moment)
        else:
            wait_for(lambda: max(losses(metrics)[0], default=0) >= moment, job, 60)
        job.send_signal(signal.SIGUSR1)
        try:
            return job.wait(60)
        except subprocess.TimeoutExpired:
            job.kill()
            return None


def interruptions():
    """USR1 ten times, from before the first step until late; then the run goes on to its end."""
    began = time.monotonic()
    last = 400 if GPU else 60
    # Every start resumes from the previous checkpoint, and each of these steps lies after it.
    moments = [0.0, 0.1, *(int(last * f) for f in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8))]
    command = train_command("interrupted", f"train.max_steps={last}")
    metrics = WORK / "interrupted" / "metrics.jsonl"
    codes = []
    reached = []
    for moment in moments:
        codes.append(interrupt(command, metrics, moment))
        reached.append(max(losses(metrics)[0], default=0))
    print((WORK / "interrupted.log").read_text(errors="replace"))
    good = codes == [75] * len(moments)
    row(
        TRAIN,
        "USR1 ten times ends with code 75",
        good,
        time.monotonic() - began,
        codes=codes,
        at_steps=reached,
    )
    code, text, seconds = run(command, 90)
    found, steps = losses(metrics)
    whole = [s["step"] for s in steps] == list(range(1, last + 1))
    a, b = deviation(found, losses(KIT / "cpu-losses.jsonl")[0])
    near = a <= 1e-3 and b <= 0.02
    row(
        TRAIN,
        "the interrupted run goes on to its end",
        code == 0 and whole and near,
        seconds,
        code=code,
        every_step_once=whole,
        attempts=max((s.get("attempt", 0) for s in steps), default=0),
        step_1=a,
        later=b,
        **({} if code == 0 else {"why": ending(code, text)}),
    )
    shutil.rmtree(WORK / "interrupted", ignore_errors=True)


if __name__ == "__main__":
    {"environment": environment, "network": network, "nccl": nccl, "training": training}[
        sys.argv[1]
    ]()
