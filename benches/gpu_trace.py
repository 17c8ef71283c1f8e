"""What a Chrome trace of training steps says: kernels, launches, waits, copies, busy share."""

import collections
import gzip
import json
import sys

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
HOST_CALLS = ("cuda_runtime", "cuda_driver")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaLaunchCooperativeKernel")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
COPIES = ("cudaMemcpy",)


def read(path):
    """Complete events of a trace file, plain or gzipped."""
    opened = gzip.open if str(path).endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8", errors="replace") as file:
        trace = json.load(file)
    events = trace["traceEvents"] if isinstance(trace, dict) else trace
    return [e for e in events if e.get("ph") == "X" and "dur" in e]


def steps_of(events, told):
    """How many steps a trace holds: what the bench told, else its annotations."""
    marks = [e for e in events if "annotation" in e.get("cat", "") and "step" in e["name"].lower()]
    return told or len({e["name"] for e in marks if e.get("cat") == "user_annotation"}) or 1


def union(spans):
    """Total length of intervals that may overlap."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def measure(events, told=None):
    """Counts of one step (means over the trace's steps) and the kernels that take the most time."""
    steps = steps_of(events, told)
    gpu = [e for e in events if e.get("cat") in ON_GPU]
    kernels = [e for e in gpu if e["cat"] == "kernel"]
    calls = collections.Counter(e["name"] for e in events if e.get("cat") in HOST_CALLS)

    def count(names):
        return sum(n for call, n in calls.items() if call.startswith(names)) / steps

    def copies(way):
        return sum(e["cat"] == "gpu_memcpy" and way in e["name"] for e in gpu) / steps

    spans = [(e["ts"], e["ts"] + e["dur"]) for e in gpu]
    whole = max(s[1] for s in spans) - min(s[0] for s in spans) if spans else 0.0
    found = {
        "steps": steps,
        "host_ops": sum(e.get("cat") == "cpu_op" for e in events) / steps,
        "kernels": len(kernels) / steps,
        "launches": count(LAUNCHES),
        "waits": count(WAITS),
        "memcpy_calls": count(COPIES),
        "copies_h2d": copies("HtoD"),
        "copies_d2h": copies("DtoH"),
        "gpu_ms": union(spans) / 1000 / steps,
        "busy": union(spans) / whole if whole else 0.0,
    }
    return found, top(kernels, steps), waits(calls, steps)


def top(kernels, steps, count=15):
    """Lines: the kernels with the most time, with their share and how often they run in a step."""
    time, times = collections.Counter(), collections.Counter()
    for e in kernels:
        time[e["name"]] += e["dur"]
        times[e["name"]] += 1
    total = sum(time.values()) or 1
    return [
        f"{d / 1000 / steps:8.3f} ms {100 * d / total:5.1f} % {times[n] / steps:7.1f} x  {n[:100]}"
        for n, d in time.most_common(count)
    ]


def waits(calls, steps):
    """Lines: which calls the host waits in."""
    return [
        f"{n / steps:8.1f} x  {c}" for c, n in calls.most_common() if c.startswith(WAITS + COPIES)
    ]


def selftest():
    """The numbers of a small trace that was counted by hand."""
    events = [
        {"ph": "X", "cat": "cpu_op", "name": "aten::add", "ts": 0, "dur": 5},
        {"ph": "X", "cat": "user_annotation", "name": "step 1", "ts": 0, "dur": 50},
        {"ph": "X", "cat": "user_annotation", "name": "step 2", "ts": 50, "dur": 50},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernelExC", "ts": 1, "dur": 2},
        {"ph": "X", "cat": "cuda_driver", "name": "cuLaunchKernel", "ts": 4, "dur": 2},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaStreamSynchronize", "ts": 6, "dur": 2},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaMemcpyAsync", "ts": 9, "dur": 2},
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 10, "dur": 20},
        {"ph": "X", "cat": "kernel", "name": "add", "ts": 20, "dur": 20},
        {
            "ph": "X",
            "cat": "gpu_memcpy",
            "name": "Memcpy DtoH (Device -> Pinned)",
            "ts": 80,
            "dur": 10,
        },
    ]
    found, kernels, waited = measure(events)
    assert found == {
        "steps": 2,
        "host_ops": 0.5,
        "kernels": 1.0,
        "launches": 1.0,
        "waits": 0.5,
        "memcpy_calls": 0.5,
        "copies_h2d": 0.0,
        "copies_d2h": 0.5,
        "gpu_ms": 0.02,
        "busy": 0.5,
    }, found
    assert len(kernels) == 2 and "gemm" in kernels[0] and len(waited) == 2
    assert measure([])[0]["busy"] == 0.0


if __name__ == "__main__":
    selftest()
    if len(sys.argv) > 1:
        numbers, *lists = measure(read(sys.argv[1]))
        print(json.dumps(numbers), *lists[0], *lists[1], sep="\n")
