"""Fuzzes for as long as you like: ``make fuzz FUZZ_SECONDS=3600``.

libFuzzer searches in C, guided by coverage, half of the time; changed ONNX files of ever new seeds take the other half.
What it finds is kept: FOLDER/findings has the inputs, and the exit code is 1.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import make_corpus
from targets import TARGETS, build

COMPILERS = ("clang-19", "clang")
CASES = 2000


def fuzz_c(folder: Path, seconds: int) -> int:
    """Run libFuzzer on each target; return how many inputs it found."""
    compiler = next((name for name in COMPILERS if shutil.which(name)), None)
    if compiler is None:
        print("clang is missing, so that nothing in C is fuzzed: apt-get install clang-19 libclang-rt-19-dev")
        return 0
    (folder / "programs").mkdir(exist_ok=True)
    programs = build(folder / "programs", compiler, sanitizers="address,undefined", driver=False)
    make_corpus.main(folder / "seeds")
    found = 0
    for target in TARGETS:
        corpus = folder / "corpus" / target
        corpus.mkdir(parents=True, exist_ok=True)
        command = [programs[target], corpus, folder / "seeds" / target, f"-max_total_time={seconds}",
                   f"-artifact_prefix={folder}/findings/{target}-", "-timeout=30", "-print_final_stats=1",
                   "-close_fd_mask=3"]  # fmt: skip
        found += subprocess.run(command, check=False).returncode != 0
    return found


def fuzz_onnx(folder: Path, seconds: int) -> int:
    """Try changed ONNX files; return how many came out as neither a network nor a refusal."""
    worker, deadline, found, tried = Path(__file__).with_name("fuzz_onnx.py"), time.monotonic() + seconds, 0, 0
    seed = time.time_ns() % (1 << 32)
    while time.monotonic() < deadline:
        command = [sys.executable, str(worker), str(seed), str(tried), str(CASES), str(folder), "compile"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            number, ended = tried, True
            for line in process.stdout or ():
                number, *what = json.loads(line)
                ended = bool(what)
                if what and what[0] not in ("network", "refused"):
                    found += 1
                    shutil.copy(folder / "case.onnx", folder / "findings" / f"{seed}-{number}.onnx")
                    print(f"seed {seed}, case {number}: {what[0]}\n{what[1]}")
                if ended and time.monotonic() > deadline:
                    process.kill()
                    break
            else:
                if process.wait():
                    found += 1
                    shutil.copy(folder / "case.onnx", folder / "findings" / f"{seed}-{number}.onnx")
                    print(f"seed {seed}, case {number}: the process ended with {process.returncode}")
            tried = number + 1
    print(f"{tried} ONNX files, {found} findings")
    return found


def main() -> int:
    """Fuzz, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600, help="in all (600)")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="corpus and findings (build/fuzz)")
    options = parser.parse_args()
    (options.folder / "findings").mkdir(parents=True, exist_ok=True)
    found = fuzz_c(options.folder.resolve(), options.seconds // (2 * len(TARGETS)))
    found += fuzz_onnx(options.folder.resolve(), options.seconds // 2)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
