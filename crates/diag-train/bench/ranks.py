"""Times two ranks of one thread each against one process with two threads, by turns.

    ranks.py DIAG_TRAIN SHARDS RECIPE FOLDER N_ROUNDS [MPIRUN]

Every side trains for SHORT and for LONG epochs, and the difference counts: the start of the
program, reading included, is in neither. CPU time is that of all processes, user and system.
The median of the rounds counts, and a ratio is that of a round, since others may be at work on
the machine. Peaks of memory are those of the longer training.
"""

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAM, SHARDS, RECIPE, FOLDER, N_ROUNDS = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5])
MPIRUN = sys.argv[6:]
SHORT, LONG = 1, 4
ONE, TCP, MPI = "one process, two threads", "two ranks, TCP", "two ranks, MPI"


def command(n_epochs, n_threads):
    recipe = FOLDER / f"{n_epochs}-epochs.toml"
    recipe.write_text(re.sub(r"(?m)^epochs = .*$", f"epochs = {n_epochs}", RECIPE.read_text()))
    shutil.rmtree(FOLDER / "run", ignore_errors=True)
    fixed = ["--device", "cpu", "--threads", str(n_threads), "--checkpoint-seconds", "1e9"]
    return [PROGRAM, "fit", "--shards", SHARDS, "--recipe", str(recipe), "--out", str(FOLDER / "run"), *fixed]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(side, n_epochs):
    if side == ONE:
        return [subprocess.Popen(command(n_epochs, 2), stdout=subprocess.DEVNULL)]
    words = command(n_epochs, 1)
    if side == MPI:
        return [subprocess.Popen([*MPIRUN, "-n", "2", *words], stdout=subprocess.DEVNULL)]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(words, env=os.environ | meeting | {"RANK": str(rank)}, stdout=subprocess.DEVNULL)
        for rank in range(2)
    ]


def measure(side, n_epochs):
    """Wall and CPU seconds, and the peak of each process in MiB; of MPI's the larger alone."""
    started = time.monotonic()
    cpu, peaks = 0, []
    processes = start(side, n_epochs)
    try:
        for process in processes:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                sys.exit(f"{process.args} failed")
            cpu += usage.ru_utime + usage.ru_stime
            peaks.append(usage.ru_maxrss / 1024)
    finally:
        # Interrupted, or one of them failed.
        for process in processes:
            if process.returncode is None:
                process.terminate()
    return time.monotonic() - started, cpu, peaks


def waiting():
    """Which share of a step rank 0 waited for the other, on average over the last epoch."""
    steps = [json.loads(line) for line in (FOLDER / "run/steps.jsonl").read_text().splitlines()]
    shares = [step.get("communication_share") for step in steps if step["epoch"] == LONG]
    return statistics.mean(shares) if None not in shares else None


def one_round(sides):
    results = {}
    for side in sides:
        short, long = measure(side, SHORT), measure(side, LONG)
        results[side] = {"wall": long[0] - short[0], "cpu": long[1] - short[1], "peaks": long[2], "waiting": waiting()}
    return results


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sides = [ONE, TCP, *([MPI] if MPIRUN else [])]
    rounds = [one_round(sides) for _ in range(N_ROUNDS)]
    print(f"{LONG - SHORT} epochs, start left out; median of {N_ROUNDS} rounds; load average {os.getloadavg()[0]:.1f}\n")
    print("| | wall s | ratio | CPU s | ratio | waiting | peak MiB of each |\n|" + " --- |" * 7)
    for side in sides:
        median = lambda of: statistics.median(of(results) for results in rounds)
        seconds = {kind: median(lambda results: results[side][kind]) for kind in ("wall", "cpu")}
        ratios = {kind: median(lambda results: results[side][kind] / results[ONE][kind]) for kind in ("wall", "cpu")}
        share = "" if side == ONE else f"{median(lambda results: results[side]['waiting']):.2f}"
        peaks = [f"{max(results[side]['peaks'][i] for results in rounds):.0f}" for i in range(len(rounds[0][side]["peaks"]))]
        timed = " | ".join(f"{seconds[kind]:.1f} | {ratios[kind]:.2f}" for kind in ("wall", "cpu"))
        print(f"| {side} | {timed} | {share} | {', '.join(peaks)} |")


main()
