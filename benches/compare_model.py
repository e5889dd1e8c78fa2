#!/usr/bin/env python3
"""Measures the model against PyTorch: the same work on both sides, in turns, in one run.

    benches/compare_model.py [--cases block,encoder,gemma] [--rounds N] [--threads N]

Makes its own Python environment (benches/requirements.txt) in a cache folder, builds kiln's programs in the release
profile, checks that both sides compute the same block, and prints a table in Markdown. Needs Linux, Python 3.11 or
later, 4.5 GB of disk and 16 GB of memory. Nothing else of kiln needs PyTorch.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

BENCHES = Path(__file__).resolve().parent
ROOT = BENCHES.parent
REQUIREMENTS = BENCHES / "requirements.txt"

# name: (kiln's program, PyTorch's arguments, arguments of both for --small, what it is)
CASES = {
    "block": (
        "block",
        ["block"],
        ["--tokens", "64", "--text-tokens", "64", "--audio-tokens", "16"],
        "transformer block, forward + backward, one timestep",
    ),
    "block-each": (
        "block",
        ["block", "--timesteps", "each"],
        ["--tokens", "64", "--text-tokens", "64", "--audio-tokens", "16"],
        "the same, PyTorch with a timestep per token as its trainer passes them",
    ),
    "encoder": ("encoder", ["encoder"], ["--pixels", "64"], "video encoder, 9 frames of 256×256"),
    "gemma": ("gemma_layer", ["gemma"], ["--tokens", "64"], "Gemma 3 12B layer, 1,024 tokens"),
}
# Largest difference of the check, relative to the largest value of a tensor.
SAME = 2e-5


def environment(folder):
    """Python with the pinned packages, made once per requirements file."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.exists() or done.read_text() != digest:
        note(f"installing PyTorch into {folder} (4.2 GB)")
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", REQUIREMENTS]
        subprocess.run(install, check=True)
        done.write_text(digest)
    return python


def build(profile):
    """Builds kiln's programs and returns their paths by name."""
    names = sorted({case[0] for case in CASES.values()})
    command = ["cargo", "bench", "--locked", "-p", "kiln-model", "--no-run", "--message-format=json"]
    command += ["--profile", profile, *(word for name in names for word in ("--bench", name))]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    messages = [json.loads(line) for line in output.splitlines()]
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}


class Side:
    """A measuring program that runs once per line it is sent."""

    def __init__(self, command, variables):
        self.process = subprocess.Popen(
            [*map(str, command), "--step"],
            cwd=ROOT, env=os.environ | variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.ready = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[:3]} ended with status {self.process.wait()}")
        return json.loads(line)

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def check(python, programs):
    """Both sides on one small block with the same numbers."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "block.safetensors"
        subprocess.run([python, BENCHES / "torch_side.py", "block", "--save", file], check=True, stdout=subprocess.DEVNULL)
        found = json.loads(subprocess.check_output([programs["block"], "--check", file], text=True))
    kinds = ("outputs", "input_gradients", "adapter_gradients")
    worst = max(found[kind] for kind in kinds)
    note(f"same numbers in, largest relative difference out: {worst:.1e} ({found['adapters']} adapters)")
    if not worst < SAME:
        raise SystemExit(f"the two sides do not compute the same: {found}")
    return worst


def measure(case, python, programs, options):
    program, torch, small, _ = CASES[case]
    small = small if options.small else []
    threads = str(options.threads)
    kiln = Side([programs[program], *small], {"RAYON_NUM_THREADS": threads})
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if options.keep_blocks:
        variables |= {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
    torch = Side([python, BENCHES / "torch_side.py", *torch, *small, "--threads", threads], variables)
    sides = {"kiln": kiln, "torch": torch}
    runs = {name: [] for name in sides}
    for number in range(options.rounds + 1):
        for name, side in sides.items():
            run = side.run()
            # The first round warms caches and lazily loaded code; its peak counts.
            if number > 0:
                runs[name].append(run)
                note(f"{case} {number}/{options.rounds} {name}: {run['seconds']:.2f} s, "
                     f"processor {run['processor_seconds']:.2f} s, "
                     f"{run['above_weights_bytes'] / 1e6:.0f} MB above the weights")  # fmt: skip
            time.sleep(0.2)
    for side in sides.values():
        side.close()
    return {name: summary(runs[name], sides[name].ready["weight_bytes"]) for name in sides}


def summary(runs, weight_bytes):
    seconds = [run["seconds"] for run in runs]
    return {
        "best": min(seconds),
        "median": statistics.median(seconds),
        "processor": min(run["processor_seconds"] for run in runs),
        "above": max(run["above_weights_bytes"] for run in runs),
        "total": max(run["peak_bytes"] for run in runs),
        "weights": weight_bytes,
    }


def table(results):
    yield "| work | side | best | median | processor time | weights | above the weights | peak of the process |"
    yield "|---|---|---|---|---|---|---|---|"
    for case, sides in results.items():
        for name, title in (("kiln", "kiln"), ("torch", "PyTorch")):
            s = sides[name]
            first = CASES[case][3] if name == "kiln" else ""
            yield (f"| {first} | {title} | {s['best']:.2f} s | {s['median']:.2f} s "
                   f"| {s['processor']:.2f} s | {megabytes(s['weights'])} "
                   f"| {megabytes(s['above'])} | {megabytes(s['total'])} |")  # fmt: skip
        kiln, torch = sides["kiln"], sides["torch"]
        ratios = [kiln[key] / torch[key] for key in ("best", "median", "processor", "weights", "above", "total")]
        yield "| | **ratio** | " + " | ".join(f"**{ratio:.2f}**" for ratio in ratios) + " |"


def megabytes(size):
    return f"{size / 1e6:,.0f} MB"


def note(text):
    print(text, file=sys.stderr, flush=True)


def main():
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=5, help="measured runs of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side")
    parser.add_argument("--profile", default="bench", help="cargo profile; `bench` is `release`")
    parser.add_argument("--small", action="store_true", help="few tokens: to try the script")
    parser.add_argument("--keep-blocks", action="store_true", help="let PyTorch's allocator keep freed blocks")
    parser.add_argument("--environment", type=Path, default=cache / "kiln" / "torch-environment")
    options = parser.parse_args()
    cases = options.cases.split(",")
    if unknown := set(cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")

    python, programs = environment(options.environment), build(options.profile)
    worst = check(python, programs)
    results = {case: measure(case, python, programs, options) for case in cases}
    print(f"{options.rounds} rounds in turns, {options.threads} threads each; "
          f"same block, same numbers: difference {worst:.1e}\n")  # fmt: skip
    print("\n".join(table(results)))
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
