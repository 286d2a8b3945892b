"""Write every network of the catalogue in Paddle 2's format and run the files: ``sweep_legacy_programs.py RESULTS``.

For the maintainer; hours on one core. A line of JSON a network is added to RESULTS, what stands there is not done
again. ``PADDLE_2_PYTHON`` names a Python with paddlepaddle 2.6.2, which then runs every file too. With ``--work`` the
exported programs are kept for another time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import paddle
from paddle.static import InputSpec

from paddlelite_callbacks.backbone.catalogue import DATA
from paddlelite_callbacks.backbone.checks import settle_
from paddlelite_callbacks.backbone.sources import build
from paddlelite_callbacks.deploy.export import export_paddle, flat_outputs
from paddlelite_callbacks.export.legacy_program import write_legacy_program

CHILD = Path(__file__).with_name("paddle_child.py")
SIZE, SECONDS = 224, 600
ATOL, RTOL = 1e-4, 1e-3  # as the export holds its files against the network


def prepare(name: str, folder: Path) -> None:
    """Build, give the batch norms statistics of the picture, export; keep what comes out."""
    if (folder / "ok").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    paddle.seed(0)
    network, x = build(name), paddle.rand([2, 3, SIZE, SIZE])
    settle_(network, x)
    network.eval()
    with paddle.no_grad():
        outputs = [one.numpy() for one in flat_outputs(network(x))]
    export_paddle(network, folder, input_spec=[InputSpec([None, 3, SIZE, SIZE], name="x0")])
    np.savez(folder / "io.npz", x=x.numpy(), **{f"y{i}": value for i, value in enumerate(outputs)})
    (folder / "ok").write_text("ok")


def check(folder: Path, pythons: dict[str, str]) -> dict:
    """Convert and run with each Paddle; returns what to note."""
    program, parameters = write_legacy_program(folder / "model.json", folder / "model")
    with np.load(folder / "io.npz") as file:
        expected = [file[key] for key in file.files if key != "x"]
        np.savez(folder / "inputs.npz", x0=file["x"])
    noted = {"pdmodel": program.stat().st_size, "pdiparams": parameters.stat().st_size}
    for version, python in pythons.items():
        subprocess.run([python, str(CHILD), str(folder)], check=False, capture_output=True, timeout=SECONDS)
        if (folder / "error.txt").exists():
            noted[version] = (folder / "error.txt").read_text()[-300:]
            continue
        with np.load(folder / "outputs.npz") as file:
            got = [file[f"y{i}"] for i in range(len(file.files))]
        same = [a.shape for a in expected] == [b.shape for b in got]
        off = max(float(np.abs(a - b).max()) for a, b in zip(expected, got, strict=True)) if same else None
        largest = max(float(np.abs(a).max()) for a in expected)
        passed = off is not None and off <= ATOL + RTOL * largest
        noted[version] = {"off": off, "of": largest, "passed": passed}
    return noted


def _child(name: str, folder: str, pythons: dict[str, str], sender) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        prepare(name, Path(folder))
        sender.send(check(Path(folder), pythons))
    except Exception as error:
        sender.send({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"})


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--work", type=Path, help="folder to keep the exported programs in")
    parser.add_argument("--kept", action="store_true", help="only what is in --work already")
    parser.add_argument("--millions", type=float, default=1e9, help="leave out networks with more parameters")
    options = parser.parse_args()
    pythons = {"3.3.1": sys.executable}
    if os.environ.get("PADDLE_2_PYTHON"):
        pythons["2.6.2"] = os.environ["PADDLE_2_PYTHON"]
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    done = {json.loads(line)["name"] for line in lines}
    entries = json.loads(DATA.read_text(encoding="utf-8"))["backbones"]
    context = multiprocessing.get_context("fork")
    for entry in sorted(entries, key=lambda entry: entry["parameters"]):
        name = entry["name"]
        kept = options.work is not None and (options.work / name / "ok").exists()
        if name in done or entry["parameters"] > options.millions * 1e6 or (options.kept and not kept):
            continue
        folder = options.work / name if options.work else Path(tempfile.mkdtemp())
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(name, str(folder), pythons, sender))
        process.start()
        sender.close()
        try:
            noted = receiver.recv() if receiver.poll(SECONDS) else {"error": f"took longer than {SECONDS} s"}
        except EOFError:
            noted = {"error": "the process died"}
        process.kill()
        process.join()
        if options.work is None:
            shutil.rmtree(folder, ignore_errors=True)
        with options.results.open("a") as file:
            file.write(json.dumps({"name": name, **noted}) + "\n")


if __name__ == "__main__":
    main()
