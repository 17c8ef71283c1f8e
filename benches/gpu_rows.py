"""What the parts of the GPU acceptance share: rows of results, time limits, the table."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

OUT = pathlib.Path(os.environ.get("OUT", "gpu-acceptance-out"))
KIT = pathlib.Path(os.environ.get("DW_KIT", "target/gpu-kit"))
# Scratch space of this run: work directories, detections, shards.
WORK = pathlib.Path(os.environ.get("WORK", "/tmp"))
RUN = os.environ.get("RUN", "")
DEVICE = os.environ.get("DEVICE", "cuda")
GPU = DEVICE == "cuda"
BIN = KIT / "bin"

# When the time of a part is up, the program that it is running is killed too (`read_to_end`).
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def row(part, check, ok, seconds=None, **numbers):
    """Appends a row; `ok` None: the check was left out, and `why` says why."""
    entry = {"run": RUN, "part": part, "check": check, "ok": ok, "seconds": rounded(seconds, 3)}
    entry.update({k: rounded(v) for k, v in numbers.items()})
    with open(OUT / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    print("result:", json.dumps(entry), flush=True)
    return ok


def rounded(value, digits=5):
    """Numbers with a few significant digits; other values as they are."""
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def run(command, limit, **env):
    """Runs a program and shows its output as it comes.

    Returns its exit code (None: it ran past `limit` seconds), its output and its seconds.
    """
    command = [str(c) for c in command]
    print("$", " ".join(f"{k}={v}" for k, v in env.items()), " ".join(command), flush=True)
    began = time.monotonic()
    everything = {**os.environ, **{k: str(v) for k, v in env.items()}}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    lines = []
    try:
        # In its own process group, so that its child processes are killed with it.
        job = subprocess.Popen(
            command, env=everything, errors="replace", start_new_session=True, **pipes
        )
        code = read_to_end(job, limit, lines)
    except OSError as e:
        code, lines = 127, [f"error: {e}"]
    seconds = time.monotonic() - began
    if code == -signal.SIGKILL and seconds >= limit:
        code = None
    print(f"[code {code}, {seconds:.1f} s]", flush=True)
    return code, "".join(lines), seconds


def read_to_end(job, limit, lines):
    """Shows a program's output until it ends or has run for `limit` seconds; its exit code."""

    def kill():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)

    timer = threading.Timer(max(limit, 1), kill)
    timer.start()
    try:
        for line in job.stdout:
            lines.append(line)
            print(line, end="", flush=True)
        return job.wait()
    finally:
        timer.cancel()
        kill()


def json_line(text, what=None):
    """The last line that is a JSON object (whose `what` is that), or None."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if what is None or found.get("what") == what:
                return found
    return None


def ending(code, text):
    """Why a program's run does not count: its exit code and its last words.

    Of a test executable: what its first failed test says.
    """
    told = "ran out of time" if code is None else f"code {code}"
    failed = re.search(r"^---- .* ----\n(.+(?:\n.+){0,2})", text, re.MULTILINE)
    if failed:
        return f"{told}: {' '.join(failed[1].split())[:200]}"
    lines = [line for line in text.strip().splitlines() if line]
    errors = [line for line in lines if "error: " in line.lower() or "panicked" in line] or lines
    return f"{told}: {errors[-1][:200] if errors else 'no output'}"


def rows():
    """The rows of this run."""
    path = OUT / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [r for r in map(json.loads, lines) if r["run"] == RUN]


def shown(value):
    """A value of a row in the table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return str(value)


def table():
    """Prints the table; exit status 0 only if parts ran and none failed."""
    found = rows()
    words = {True: "ok", False: "FAILED", None: "skipped"}
    count = {ok: sum(r["ok"] is ok for r in found) for ok in words}
    verdict = "passed" if found and not count[False] else "FAILED"
    print(
        f"GPU acceptance on {DEVICE}, run {RUN}: {verdict}; "
        + ", ".join(f"{count[ok]} {words[ok]}" for ok in words)
    )
    part = None
    for r in found:
        if r["part"] != part:
            part = r["part"]
            print(f"\n{part}")
        numbers = [
            f"{k} {shown(v)}"
            for k, v in r.items()
            if k not in ("run", "part", "check", "ok", "seconds", "lines") and v is not None
        ]
        seconds = "" if r["seconds"] is None else f"{r['seconds']:.1f} s"
        print(f"  {words[r['ok']]:8}{seconds:>8}  {r['check']:<40} {', '.join(numbers)}".rstrip())
        for line in r.get("lines") or []:
            print(f"{'':20}{line}")
    return 0 if verdict == "passed" else 1


if __name__ == "__main__":
    if sys.argv[1] == "table":
        sys.exit(table())
    # row PART CHECK true|false|null WHY
    row(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), why=sys.argv[5])
