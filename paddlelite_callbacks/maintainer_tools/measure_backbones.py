"""Build and measure backbones for the catalogue of `list_backbones`.

``python -m paddlelite_callbacks.maintainer_tools.measure_backbones [name ...]`` measures the named networks (default:
all) and writes them to the data file of the package. Each is measured in a separate process, so that a crash affects
only that network.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import paddle
from paddle.nn import Conv2D

from paddlelite_callbacks.backbone.catalogue import DATA
from paddlelite_callbacks.backbone.features import find_taps
from paddlelite_callbacks.backbone.registry import build, known_names, source_of, trunk_end, weights_url
from paddlelite_callbacks.backbone.strides import coarseness
from paddlelite_callbacks.backbone.truncate import cut_
from paddlelite_callbacks.backbone.trunk import Trunk
from paddlelite_callbacks.maintainer_tools.backbone_checks import CHECKS, settle_
from paddlelite_callbacks.nn.cost import count_macs, count_parameters
from paddlelite_callbacks.utils.atomic_files import staged_file
from paddlelite_callbacks.utils.progress import tqdm

__all__ = ["LeftOutError", "main", "measure"]

_SIZE = 224
_NEEDED = (8, 16, 32)  # strides that detection, pose and segmentation networks need
# Modules of networks without feature maps; not built, since some have billions of weights.
_TOKENS = ("foundation_vit", "foundation_vit_variant", "cae", "vision_transformer", "distilled_vision_transformer")


class LeftOutError(Exception):
    """A network is not suitable for the catalogue; the message says why."""


def measure(name: str, *, checks: Sequence[str] = ()) -> dict[str, Any]:
    """Build a backbone and return its catalogue entry.

    Args:
        name: Name of the backbone, see `known_names`.
        checks: Keys of `CHECKS` to run on its trunk.

    Raises:
        LeftOutError: It cannot be built, cannot be run at 224x224, or has no maps of the needed strides.
    """
    x = paddle.rand([1, 3, _SIZE, _SIZE])
    try:
        network = build(name)
        taps = [tap for tap in find_taps(network, x, end=trunk_end(name)) if tap.default]
    except Exception as error:
        raise LeftOutError(f"fails at {_SIZE}x{_SIZE}: {type(error).__name__}: {_first_line(error)}") from error
    strides = sorted({tap.stride for tap in taps}, key=coarseness)
    if not set(_NEEDED) <= set(strides):
        raise LeftOutError(f"its trunk has maps of strides {strides}, needed are {list(_NEEDED)}")
    deepest = dict(network.named_sublayers()).get(max(taps, key=lambda tap: coarseness(tap.stride)).name)
    if isinstance(deepest, Conv2D) and max(deepest._stride) > 1:
        raise LeftOutError("its maps are patch embeddings; the stages behind them work on tokens")
    entry = {
        "name": name,
        "source": source_of(name).name,
        "parameters": count_parameters(network),
        "macs": count_macs(network, [x]),
        "taps": [{"name": tap.name, "channels": tap.channels, "stride": tap.stride} for tap in taps],
        "licence": source_of(name).licence,
        "weights": weights_url(name),
    }
    trunk = Trunk(network, [tap.name for tap in taps])
    cut_(trunk, x)
    entry |= {"trunk_parameters": count_parameters(trunk), "trunk_macs": count_macs(trunk, [x])}
    if checks:
        settle_(trunk, x)
    return entry | {"checks": {check: CHECKS[check](trunk, x) for check in checks}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure backbones and update the data file.

    Args:
        arguments: Command-line arguments without the program's name; ``None`` for ``sys.argv``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m paddlelite_callbacks.maintainer_tools.measure_backbones", description=__doc__
    )
    parser.add_argument("names", nargs="*", help="names or patterns such as 'PPLCNet_*'; none for all")
    parser.add_argument("--checks", nargs="*", choices=[*CHECKS], default=[*CHECKS], help="checks to run; default: all")
    parser.add_argument("--output", type=Path, default=DATA, help="the data file (default: the package's own)")
    parser.add_argument("--seconds", type=float, default=300, help="time limit per network (default: 300)")
    options = parser.parse_args(arguments)
    data = _read(options.output)
    for name in tqdm(_chosen(options.names), unit="network"):
        result = _in_a_process(name, options.checks, options.seconds)
        data["left_out"].pop(name, None)
        kept = data["backbones"].pop(name, {}).get("checks", {})
        if isinstance(result, str):
            data["left_out"][name] = result
        else:
            result["checks"] = kept | result["checks"]
            data["backbones"][name] = result
        _write(options.output, data)
    return 0


def _chosen(patterns: Sequence[str]) -> list[str]:
    names = known_names()
    matches = {pattern: _matching(names, pattern) for pattern in patterns}
    unknown = [pattern for pattern, found in matches.items() if not found]
    if unknown:
        raise SystemExit(f"No backbone matches {unknown}.")
    return [name for name in names if not patterns or any(name in found for found in matches.values())]


def _matching(names: Sequence[str], pattern: str) -> list[str]:
    """Return the names that match ``pattern``, as `list_backbones` does."""
    exact = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    return exact or [name for name in names if fnmatch.fnmatchcase(name.casefold(), pattern.casefold())]


def _in_a_process(name: str, checks: Sequence[str], seconds: float) -> dict[str, Any] | str:
    context = multiprocessing.get_context("fork")  # so that paddle and paddleclas are imported only once
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, checks, sender))
    begin = time.monotonic()
    process.start()
    sender.close()
    try:
        while not receiver.poll(1.0):
            if time.monotonic() - begin > seconds:
                return f"took longer than {seconds:.0f} s"
        return receiver.recv()
    except EOFError:
        process.join()
        return f"the process died with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()


def _child(name: str, checks: Sequence[str], sender: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # silence the log of Paddle's C++ code
    try:
        module = _without_maps(name)
        sender.send(module if module else measure(name, checks=checks))
    except LeftOutError as error:
        sender.send(str(error))
    except Exception as error:
        sender.send(f"cannot be cut behind its last map: {type(error).__name__}: {_first_line(error)}")
    sender.close()


def _without_maps(name: str) -> str | None:
    if source_of(name).name != "paddleclas":
        return None
    factory: Callable[..., Any] = getattr(sys.modules["paddleclas.ppcls.arch.backbone"], name)
    module = factory.__module__.rpartition(".")[2]
    return f"a transformer on tokens ({module}): it has no maps" if module in _TOKENS else None


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {"backbones": {}, "left_out": {}}
    data = json.loads(file.read_text(encoding="utf-8"))
    return data | {"backbones": {entry["name"]: entry for entry in data["backbones"]}}


def _write(file: Path, data: dict[str, Any]) -> None:
    backbones = sorted(data["backbones"].values(), key=lambda entry: (entry["source"], entry["name"]))
    head = {
        "command": "python -m paddlelite_callbacks.maintainer_tools.measure_backbones",
        "versions": {name: importlib.metadata.version(name) for name in ("paddlepaddle", "paddleclas")},
        "input": [1, 3, _SIZE, _SIZE],
    }
    lines = [f"  {json.dumps(entry)}" for entry in backbones]
    text = json.dumps(head | {"left_out": dict(sorted(data["left_out"].items()))}, indent=1)
    text = text[:-2] + ',\n "backbones": [\n' + ",\n".join(lines) + "\n ]\n}\n"
    with staged_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error:" in line or line.startswith("[Hint")]
    return (telling or lines or [""])[0][:200]


if __name__ == "__main__":
    raise SystemExit(main())
