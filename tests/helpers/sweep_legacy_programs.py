"""Write every network of the catalogue in Paddle 2's format and run the files: ``sweep_legacy_programs.py RESULTS``.

For the maintainer; hours on one core. A line of JSON a network is added to RESULTS, what stands there is not done
again. ``PADDLE_2_PYTHON`` names a Python with paddlepaddle 2.6.2, which then runs every file too. With ``--work`` the
exported programs are kept for another time. ``--summary FILE`` writes what the lines say of each network of the
catalogue, and does nothing else. ``--known FILE`` takes an earlier summary: what passed there is not done again, and a
new summary says so too. ``--size`` takes smaller pictures, where a network can take them: the operators and their
attributes are the same, the convolutions cheaper.

A network with random weights may be chaotic: where a file is off by more than is allowed, ``moves`` tells how far the
exported Paddle 3 program itself moves when its input moves by one part in a million. If that is more than is allowed,
``apart`` counts: how far the file is from that program when Paddle 3 runs the operators of both as they are written.
Only a file that gives the same bits passes. Otherwise it is tried again with pictures of full size, which settle its
batch norms better, and then with other weights (``seed``).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from places import HELPERS

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import paddle
from paddle.static import InputSpec

from paddlelite_callbacks.backbone.catalogue import DATA
from paddlelite_callbacks.backbone.registry import build
from paddlelite_callbacks.benchmark.engines import PaddleInference
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.legacy_program import write_legacy_program
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.maintainer_tools.backbone_checks import settle_
from paddlelite_callbacks.nn.nested import flat_outputs

CHILD = HELPERS.joinpath("paddle_child.py")
SIZE, SECONDS = 224, 3600
CHAOTIC = "chaotic, same bits as Paddle 3's program"
ATOL, RTOL = 1e-4, 1e-3  # as the export holds its files against the network


def prepare(name: str, folder: Path, size: int = SIZE, seed: int = 0) -> None:
    """Build, give the batch norms statistics of the picture, export; keep what comes out."""
    if (folder / "ok").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    paddle.seed(seed)
    network, x = build(name), paddle.rand([2, 3, size, size])
    settle_(network, x)
    network.eval()
    with paddle.no_grad():
        outputs = [one.numpy() for one in flat_outputs(network(x))]
    export_paddle(network, folder, input_spec=[InputSpec([None, 3, size, size], name="x0")])
    np.savez(folder / "io.npz", x=x.numpy(), **{f"y{i}": value for i, value in enumerate(outputs)})
    (folder / "ok").write_text("ok")


def convert(folder: Path) -> dict:
    """Write the pair; returns its bytes and the size of the pictures."""
    program, parameters = write_legacy_program(folder / "model.json", folder / "model")
    with np.load(folder / "io.npz") as file:
        np.savez(folder / "inputs.npz", x0=file["x"])
        size = file["x"].shape[-1]
    return {"size": size, "pdmodel": program.stat().st_size, "pdiparams": parameters.stat().st_size}


def compare(folder: Path) -> dict | str:
    """Return how far what a Paddle gave is off, or its error."""
    if (folder / "error.txt").exists():
        return (folder / "error.txt").read_text()[-300:]
    with np.load(folder / "io.npz") as file:
        expected = [file[key] for key in file.files if key != "x"]
    with np.load(folder / "outputs.npz") as file:
        got = [file[f"y{i}"] for i in range(len(file.files))]
    if [a.shape for a in expected] != [b.shape for b in got]:
        return f"outputs {[b.shape for b in got]}, expected {[a.shape for a in expected]}"
    off = max(float(np.abs(a - b).max()) for a, b in zip(expected, got, strict=True))
    largest = max(float(np.abs(a).max()) for a in expected)
    return {"off": off, "of": largest, "passed": off <= ATOL + RTOL * largest}


def movement(folder: Path) -> float:
    """Return how far the source program's outputs move when its input moves by one part in a million."""
    artefact = Artefact(
        kind="paddle", path=folder / "model.json", files=(folder / "model.json", folder / "model.pdiparams")
    )
    predict = PaddleInference(onednn=False).load(artefact, threads=1)
    with np.load(folder / "io.npz") as file:
        x = file["x"]
    noise = np.random.RandomState(0).standard_normal(x.shape).astype("float32")
    return max(float(np.abs(a - b).max()) for a, b in zip(predict([x]), predict([x * (1 + 1e-6 * noise)]), strict=True))


def apart(folder: Path) -> float:
    """Return how far the file's outputs are from the exported program's, without passes that reorder sums."""
    outputs = []
    for end in (".pdmodel", ".json"):
        environment = {**os.environ, "PROGRAM_END": end, "PASSES": "0"}
        subprocess.run([sys.executable, str(CHILD), str(folder)], check=False, capture_output=True, env=environment)
        if _said(folder) is not None:
            return float("inf")
        with np.load(folder / "outputs.npz") as file:
            outputs.append([file[f"y{i}"] for i in range(len(file.files))])
    return max(float(np.abs(a - b).max()) for a, b in zip(*outputs, strict=True))


def verdict(noted: dict) -> str:
    """Return ``"passed"``, ``"chaotic: ..."``, or what is wrong, of a line of the results."""
    if "error" in noted:
        return noted["error"]
    ran = {version: noted[version] for version in noted if version[0].isdigit()}
    if said := [f"Paddle {version}: {found}" for version, found in ran.items() if isinstance(found, str)]:
        return "; ".join(said)
    if all(found["passed"] for found in ran.values()):
        return "passed"
    off = max(found["off"] for found in ran.values())
    moves, largest = noted.get("moves", 0.0), max(found["of"] for found in ran.values())
    if moves > ATOL + RTOL * largest and noted.get("apart") == 0:
        return "passed"
    said = f"off by {off:.2g} of {largest:.2g}"
    return f"chaotic: {said}, its own output moves by {moves:.2g} with one part in a million" if moves >= off else said


def summary(lines: list[dict], names: list[str], versions: list[str], earlier: dict | None = None) -> dict:
    """Return what the results say of every network: how many passed, and why the others did not.

    Args:
        lines: of the results.
        names: of the catalogue.
        versions: of Paddle in which they ran.
        earlier: a summary; what it says of a network counts where no line speaks of it.
    """
    known = dict(earlier["other"]) | dict.fromkeys(earlier["passed"], "passed") if earlier else {}
    known |= {line["name"]: verdict(line) for line in lines}
    sizes = (earlier or {}).get("smaller", {}) | {line["name"]: line.get("size", SIZE) for line in lines}
    chaotic = set((earlier or {}).get("chaotic, same bits as Paddle 3's program", [])) - {
        line["name"] for line in lines
    }
    chaotic |= {line["name"] for line in lines if "apart" in line}
    passed = sorted(name for name in names if known.get(name) == "passed")
    other = {name: known.get(name, "not run") for name in sorted(names) if name not in passed}
    return {
        "paddle": versions,
        "tolerance": f"{ATOL} + {RTOL} of the largest output",
        "size": SIZE,
        "smaller": {name: size for name, size in sorted(sizes.items()) if size != SIZE},
        CHAOTIC: sorted(chaotic.intersection(passed)),
        "passed": passed,
        "other": other,
    }


def _child(name: str, folder: str, size: int, seed: int, sender) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        try:
            prepare(name, Path(folder), size, seed)
        except Exception:
            if size == SIZE:
                raise
            prepare(name, Path(folder), SIZE, seed)  # it takes pictures of its own size only
        sender.send(convert(Path(folder)))
    except Exception as error:
        sender.send({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"})


def _converted(name: str, folder: Path, size: int, seed: int = 0) -> dict:
    """Build, export and convert in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, str(folder), size, seed, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(SECONDS) else {"error": f"took longer than {SECONDS} s"}
    except EOFError:
        return {"error": "the process died"}
    finally:
        process.kill()
        process.join()


def _run(batch: dict[str, tuple[Path, dict]], pythons: dict[str, str]) -> None:
    """Run what was converted with each Paddle, one process for all, and note what comes out."""
    for version, python in pythons.items():
        waiting = [str(folder) for folder, noted in batch.values() if "error" not in noted]
        while waiting:
            subprocess.run([python, str(CHILD), *waiting], check=False, capture_output=True)
            died = [i for i, f in enumerate(waiting) if _said(Path(f)) == "the process died"]
            waiting = waiting[died[0] + 1 :] if died else []
        for folder, noted in batch.values():
            if "error" not in noted:
                noted[version] = compare(folder)
    for folder, noted in batch.values():
        if verdict(noted).startswith("off by"):
            noted["moves"] = movement(folder)
            noted["apart"] = apart(folder)


def _tried_again(name: str, folder: Path, noted: dict, pythons: dict[str, str]) -> dict:
    """Return what comes of a chaotic network with larger pictures and with other weights."""
    for seed in range(0 if noted.get("size", SIZE) < SIZE else 1, 3):
        if not verdict(noted).startswith("chaotic"):
            break
        again = folder / f"again{seed}"
        noted = _converted(name, again, SIZE, seed) | {"seed": seed}
        _run({name: (again, noted)}, pythons)
    return noted


def _said(folder: Path) -> str | None:
    return (folder / "error.txt").read_text() if (folder / "error.txt").exists() else None


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--work", type=Path, help="folder to keep the exported programs in")
    parser.add_argument("--kept", action="store_true", help="only what is in --work already")
    parser.add_argument("--millions", type=float, default=1e9, help="leave out networks with more parameters")
    parser.add_argument("--size", type=int, default=SIZE, help=f"height and width of the pictures (default {SIZE})")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these networks")
    parser.add_argument("--batch", type=int, default=8, help="networks at a time (default 8)")
    parser.add_argument("--known", type=Path, help="an earlier summary; what passed there is left out")
    parser.add_argument("--summary", type=Path, help="write what the results say, and do nothing else")
    options = parser.parse_args()
    pythons = {"3.3.1": sys.executable}
    if os.environ.get("PADDLE_2_PYTHON"):
        pythons["2.6.2"] = os.environ["PADDLE_2_PYTHON"]
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    done = {json.loads(line)["name"] for line in lines}
    entries = json.loads(DATA.read_text(encoding="utf-8"))["backbones"]
    earlier = json.loads(options.known.read_text(encoding="utf-8")) if options.known else None
    if earlier:
        done.update(earlier["passed"])
    if options.summary:
        versions = sorted({key for line in lines for key in json.loads(line) if key[0].isdigit()}, reverse=True)
        found = summary([json.loads(line) for line in lines], [entry["name"] for entry in entries], versions, earlier)
        options.summary.write_text(json.dumps(found, indent=1) + "\n")
        return
    names = [
        entry["name"]
        for entry in sorted(entries, key=lambda entry: entry["parameters"])
        if entry["name"] not in done
        and entry["parameters"] <= options.millions * 1e6
        and (not options.only or entry["name"] in options.only)
        and (not options.kept or (options.work / entry["name"] / "ok").exists())
    ]
    while names := [name for name in names if name not in _done(options.results)]:
        with tempfile.TemporaryDirectory() as home:
            batch = {}
            for name in names[: options.batch]:
                folder = (options.work or Path(home)) / name
                batch[name] = folder, _converted(name, folder, options.size)
            _run(batch, pythons)
            for name, (folder, noted) in batch.items():
                noted |= _tried_again(name, folder, noted, pythons)
            with options.results.open("a") as file:
                file.writelines(json.dumps({"name": name, **noted}) + "\n" for name, (_, noted) in batch.items())


def _done(results: Path) -> set[str]:
    """Return the networks in RESULTS, to which another run may be adding."""
    lines = results.read_text().splitlines() if results.exists() else []
    return {json.loads(line)["name"] for line in lines}


if __name__ == "__main__":
    main()
