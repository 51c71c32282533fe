"""Times ct-ingest and its peers by turns and prints the tables of docs/benchmarks.md.

    run.py CT_INGEST FOLDER N_ROUNDS

FOLDER holds the cohorts small, large (ten times small), rle, jpeg-lossless, jpeg-ls and jpeg-2000.
CPU time is that of the process and its children, user and system, start included; the
median of the rounds counts, since others may be at work on the machine.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PROGRAM, FOLDER, N_ROUNDS = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
OUT = FOLDER / "out"


def measure(command):
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):
        sys.exit(f"{command} failed:\n{said}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - started, usage.ru_maxrss / 1024


def ours(cohort, jobs, *flags):
    folder = FOLDER / cohort
    fixed = ["--labels", str(folder / "labels.csv"), "--out", str(OUT / "shards"), "--jobs", str(jobs)]
    return [PROGRAM, "dicom", str(folder), *fixed, *flags]


def peer(tool, cohort, processes=1):
    script, out = str(HERE / "peers.py"), str(OUT / "peer.parquet")
    return [sys.executable, script, tool, str(FOLDER / cohort), out, str(processes)]


def read_alone(cohort):
    return ["sh", "-c", f"find '{FOLDER / cohort}' -name '*.dcm' -print0 | xargs -0 cat > /dev/null"]


def by_turns(commands):
    """Runs all, one after the other, and again; the first round only warms the page cache."""
    rounds = [{name: measure(command) for name, command in commands.items()} for _ in range(N_ROUNDS + 1)]
    return {
        name: [statistics.median(r[name][i] for r in rounds[1:]) for i in range(3)] for name in commands
    }


def count(cohort):
    return sum(1 for _ in (FOLDER / cohort).glob("*/*.dcm"))


def table(title, n_slices, found, ours_name):
    print(f"\n{title}: {n_slices} slices, median of {N_ROUNDS} rounds\n")
    print("| what | slices a CPU second | ct-ingest is faster by | wall s | faster by | peak MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, (cpu, wall, peak) in found.items():
        ratio = [mine / own for mine, own in zip((cpu, wall), found[ours_name])]
        print(f"| {name} | {n_slices / cpu:.0f} | {ratio[0]:.2f} | {wall:.2f} | {ratio[1]:.2f} | {peak:.0f} |")


KINDS = {
    "BLAKE3 of files, SHA-256 of pictures and shards": r"blake3|sha2|sha256",
    "zstd, Parquet": r"ZSTD|HUF_|HIST|FSE|parquet|arrow",
    "grey levels, measures, resizing": r"pulp|survey|render|HuTable|Grid|slices::|study::",
    "body and lung masks": r"select::",
    "reading and writing files (kernel)": r"\[k\]",
}


def where_time_goes():
    if not shutil.which("perf"):
        print("\nwhere the time goes: perf is not installed")
        return
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    data = str(OUT / "perf.data")
    recorded = subprocess.run(["perf", "record", "-o", data, *ours("small", 1, "--select", "all")], capture_output=True)
    # 3: done, but slices of one anatomy look alike, which is listed.
    assert recorded.returncode in (0, 3), recorded.stderr
    report = ["perf", "report", "-i", data, "--stdio", "--sort", "symbol"]
    lines = subprocess.run(report, capture_output=True, check=True, text=True).stdout.splitlines()
    shares = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for line in lines:
        found = re.match(r"\s+([\d.]+)%\s+(.*)", line)
        if found:
            kinds = (kind for kind, pattern in KINDS.items() if re.search(pattern, found[2]))
            shares[next(kinds, "the rest")] += float(found[1])
    print("\n| where the time goes | share |\n| --- | ---: |")
    for kind, share in shares.items():
        print(f"| {kind} | {share:.0f} % |")


def main():
    n_small, n_large = count("small"), count("large")
    native = {
        "ct-ingest --select all": ours("small", 1, "--select", "all"),
        "ct-ingest": ours("small", 1),
        "SimpleITK + cv2": peer("sitk-cv2", "small"),
        "pydicom + PIL": peer("pydicom-pil", "small"),
        "reading the files alone (cat)": read_alone("small"),
    }
    table("uncompressed, 512x512, one thread", n_small, by_turns(native), "ct-ingest --select all")
    native = {
        "ct-ingest --select all": ours("large", 1, "--select", "all"),
        "SimpleITK + cv2": peer("sitk-cv2", "large"),
        "pydicom + PIL": peer("pydicom-pil", "large"),
        "reading the files alone (cat)": read_alone("large"),
    }
    table("the same, ten times as many, so that starting counts less", n_large, by_turns(native), "ct-ingest --select all")
    native = {
        "ct-ingest --select all": ours("large", 2, "--select", "all"),
        "SimpleITK + cv2": peer("sitk-cv2", "large", 2),
        "pydicom + PIL": peer("pydicom-pil", "large", 2),
    }
    table("the same on two cores, the peers as two processes", n_large, by_turns(native), "ct-ingest --select all")
    for cohort in ("rle", "jpeg-lossless", "jpeg-ls", "jpeg-2000"):
        found = by_turns(
            {
                "ct-ingest --select all": ours(cohort, 1, "--select", "all"),
                "pydicom + pylibjpeg": peer("pydicom-pylibjpeg", cohort),
            }
        )
        table(cohort, count(cohort), found, "ct-ingest --select all")
    found = by_turns({"small": ours("small", 2), "large": ours("large", 2)})
    print(f"\n{n_large} against {n_small} slices, 2 threads\n\n| | ratio |\n| --- | ---: |")
    for i, what in enumerate(("CPU time", "wall time", "peak memory")):
        print(f"| {what} | {found['large'][i] / found['small'][i]:.2f} |")
    where_time_goes()
    shutil.rmtree(OUT, ignore_errors=True)


main()
