"""Validate exported files against the network, engine by engine.

Each file gets a verdict per engine. A file that at least one engine, or its exact reference, computes correctly is
kept, with the verdicts of the others; a file that none computes correctly is deleted. A report on an engine that
differs names those that agree, the likely cause and the remedy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from paddlelite_callbacks.benchmark.engines import ENGINES, in_batches, missing_reason, takes_precision
from paddlelite_callbacks.benchmark.exact_reference import EXACT, exact_engine
from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.benchmark.load import LoadedFiles, checked
from paddlelite_callbacks.benchmark.options import BenchOptions, latency_row
from paddlelite_callbacks.errors import require
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.compare import KIND_OF_CHECK, Check, FileVerdict
from paddlelite_callbacks.export.saturation import SaturationReport, saturating_channels
from paddlelite_callbacks.export.validate import own_movement
from paddlelite_callbacks.export.variants import Forms, Reference, Variants
from paddlelite_callbacks.utils.cpu import has_vnni
from paddlelite_callbacks.utils.error_text import reason
from paddlelite_callbacks.utils.isolation import hushed_stdout

__all__ = ["file_verdicts", "likely_causes", "validate_files", "violations"]

_log = logging.getLogger(__name__)

_UNSETTLED = (
    "Its own output moves by {:.3g} when its input moves by one part in a million, so no two engines can agree: "
    "check whether its batch-norm statistics are settled; train it, or run some batches in train mode, first."
)
_UNKNOWN = "No reference could be run to tell whether the file or the engine is wrong."
_CHANGED = (
    "Its definition gives the same wrong values, so the conversion changed the network: check whether forward() "
    "behaves differently under paddle.jit (paddle.in_dynamic_mode(), Python numbers, numpy())."
)
_KNOWN = {  # engine, operators one of which is in the file, what is known
    "openvino": (("LSTM", "GRU", "RNN"), "OpenVINO computes LSTM and GRU inexactly in files with quantised layers"),
}


def validate_files(
    forms: Forms,
    files: LoadedFiles,
    variants: Variants,
    sample: Sequence[np.ndarray],
    options: BenchOptions,
) -> tuple[LoadedFiles, tuple[str, ...]]:
    """Delete files that no engine computes correctly, and explain differences.

    Args:
        forms: Result of `export_forms`; changed.
        files: Result of `load_files`.
        variants: Variants of the network.
        sample: Inputs of the checks, one array each.
        options: Tolerances.

    Returns:
        The remaining files, with checks of exact references where needed, and the notes.
    """
    files = _with_references(forms.artefacts, files, sample, variants.references, options)
    notes = []
    for artefact in list(forms.artefacts):
        checks = _checks_of(artefact, files.checks)
        note = _explained(artefact, checks, variants, sample, options)
        if any(check.passed for check in checks):
            notes += [note] if note else []
            continue
        failed = [r for r in files.failed if (_kind_of(r.engine), r.precision) == (artefact.kind, artefact.precision)]
        could_not = "; ".join(f"{row.engine}: {row.error}" for row in failed) or "no engine for it was chosen"
        why = note or f"no engine could run the file ({could_not})"
        forms.artefacts.remove(artefact)
        for file in artefact.files:
            if not any(file in other.files for other in forms.artefacts):  # programs share their parameters
                file.unlink()
        forms.errors[artefact.kind, artefact.precision] = why
        files = _without(files, artefact, f"not exported: {why}", options)
    return files, tuple(notes)


def violations(errors: Mapping[tuple[str, str], str], files: LoadedFiles, options: BenchOptions) -> tuple[str, ...]:
    """List missing files, differing engines and engines that failed.

    An engine or a converter that is not installed does not count, unless ``options`` names its engine; nor does an int8
    file that an engine cannot read, as those of phones.

    Args:
        errors: Reason for each missing file, by kind and precision.
        files: Result of `validate_files`.
        options: Chosen engines.
    """
    absent = [engine.name for engine in options.chosen() if missing_reason(engine)] if options.engines is None else []
    kinds = {*KIND_OF_CHECK.values(), *(engine.kind for engine in options.chosen() if engine.name not in absent)}
    said = [f"no {kind} {precision} file: {why}" for (kind, precision), why in errors.items() if kind in kinds]
    said += [
        f"{row.engine} {row.precision} {row.text}"
        for row in file_verdicts(files.checks, files.failed)
        if not row.agrees
        and row.engine not in (*EXACT, *absent)
        and takes_precision(row.engine, row.precision)
        and (_kind_of(row.engine), row.precision) not in errors
    ]
    return tuple(said)


def _with_references(
    artefacts: Sequence[Artefact],
    files: LoadedFiles,
    sample: Sequence[np.ndarray],
    expected: Mapping[str, Reference],
    options: BenchOptions,
) -> LoadedFiles:
    """Run the exact reference of files that an engine got wrong or none could run."""
    checks, exact = list(files.checks), dict(files.exact)
    for artefact in artefacts:
        known = _checks_of(artefact, files.checks)
        engine = exact_engine(artefact.kind)
        if engine is None or (known and all(check.passed for check in known)):
            continue
        try:
            with hushed_stdout():
                predict = engine.load(artefact, threads=options.settings[0][0])
                got = in_batches(predict, files.rows)(sample)
            checks.append(checked(engine.name, artefact, got, expected[artefact.precision], options))
            exact[engine.name, artefact.precision] = predict, artefact
        except Exception as error:  # the engines' own reports say why, or how much they differ
            _log.info("%s could not run %s: %s", engine.name, artefact.path.name, reason(error))
    return replace(files, checks=tuple(checks), exact=exact)


def _explained(
    artefact: Artefact, checks: Sequence[Check], variants: Variants, sample: Sequence[np.ndarray], options: BenchOptions
) -> str | None:
    """Explain the engines that differ on a file; ``None`` where none does."""
    wrong = [check for check in checks if not check.passed]
    if not wrong:
        return None
    right = [check for check in checks if check.passed]
    agreeing = [check.engine for check in right if check.engine not in EXACT]
    said = "; ".join(f"{check.engine} {check.verdict}" for check in wrong)
    is_clipped = variants.is_quantized and artefact.precision != "int8"
    moved = own_movement(variants.float_network() if is_clipped else variants.network, sample)
    unsettled = moved > min((c.tolerance for c in wrong if c.tolerance is not None), default=np.inf)
    if not right:
        known = any(check.engine in EXACT for check in checks)
        cause = _UNSETTLED.format(moved) if unsettled else _CHANGED if known else _UNKNOWN
        return f"{artefact.path.name} computes something else than the network: {said}. {cause}"
    if unsettled:
        return f"{artefact.path.name}: {said}; {_agree([check.engine for check in right])}. {_UNSETTLED.format(moved)}"
    parts = likely_causes(artefact, wrong)
    others = [engine.name for engine in options.chosen() if engine.name not in {check.engine for check in wrong}]
    if agreeing:
        parts.append(f"{_agree(agreeing)}: deploy this file there; engines={others} leaves out what differs.")
    elif artefact.kind == "onnx":
        parts.append("ONNX Runtime computes it correctly with its graph optimisations off.")
    else:
        parts.append(f"{_agree([check.engine for check in right])} with the network.")
    return " ".join(parts)


def likely_causes(artefact: Artefact, wrong: Sequence[Check]) -> list[str]:
    """Return why engines get a correct file wrong, and the remedy in training.

    Args:
        artefact: File that is correct by its definition.
        wrong: Checks of the engines that differ.
    """
    saturating = _saturation(artefact)
    narrow = [check for check in wrong if saturating.channels and not has_vnni(check.engine)]
    parts = []
    if narrow:
        off = ", ".join(f"{check.engine} is off by {check.distance}" for check in narrow)
        parts.append(
            f"{artefact.path.name} is correct by definition; this CPU has no VNNI: {off}; use reduce_range=True "
            f"({saturating.channels} of {saturating.total} channels can saturate)."
        )
    for check in wrong:
        if check not in narrow:
            parts.append(f"{artefact.path.name}: {check.engine} {check.verdict}. {_defect(check.engine, artefact)}")
    return parts


def _agree(names: Sequence[str]) -> str:
    return f"{' and '.join(names)} agree{'s' * (len(names) == 1)}"


def _defect(engine: str, artefact: Artefact) -> str:
    """Return the likely cause where the file itself is correct."""
    if engine == "paddle-onednn":
        return "The program is correct, Paddle's default kernels (oneDNN) are not."
    operators, known = _KNOWN.get(engine, ((), ""))
    if artefact.kind == "onnx" and operators and _operators(artefact) & set(operators):
        return f"The file is correct: {known}."
    return f"The file is correct, so {engine} computes this network wrongly here: a defect of that engine or version."


def _operators(artefact: Artefact) -> set[str]:
    onnx = require("onnx", needed_for="a look into ONNX files")
    return {node.op_type for node in onnx.load(str(artefact.path)).graph.node}


def _saturation(artefact: Artefact) -> SaturationReport:
    if artefact.kind != "onnx" or artefact.precision != "int8":
        return SaturationReport(layers=())
    return saturating_channels(artefact.path)


def _kind_of(engine: str) -> str:
    if engine in KIND_OF_CHECK:
        return KIND_OF_CHECK[engine]
    return ENGINES[engine].kind if engine in ENGINES else "paddle" if engine == "paddle.jit.load" else "onnx"


def _checks_of(artefact: Artefact, checks: Sequence[Check]) -> list[Check]:
    return [c for c in checks if (_kind_of(c.engine), c.precision) == (artefact.kind, artefact.precision)]


def _without(files: LoadedFiles, artefact: Artefact, why: str, options: BenchOptions) -> LoadedFiles:
    """Remove a file from timing; its checks stay."""
    gone = [key for key, (_, one) in files.ready.items() if one is artefact]
    rows = [latency_row(*key, options, error=why) for key in gone]
    ready = {key: value for key, value in files.ready.items() if key not in gone}
    exact = {key: value for key, value in files.exact.items() if value[1] is not artefact}
    return replace(files, ready=ready, exact=exact, failed=(*files.failed, *rows))


def file_verdicts(checks: Sequence[Check], latencies: Sequence[Latency]) -> tuple[FileVerdict, ...]:
    """Return a verdict per engine and file, exact references included.

    Args:
        checks: Checks of the engines that ran.
        latencies: Rows whose errors say why others did not run.
    """
    found = {
        (c.engine, c.precision): FileVerdict(
            engine=c.engine,
            precision=c.precision,
            agrees=None if c.passed and c.unverified is not None else c.passed,
            text=c.verdict,
        )
        for c in checks
    }
    for row in latencies:
        if row.error is not None and (row.engine, row.precision) not in found:
            found[row.engine, row.precision] = FileVerdict(
                engine=row.engine, precision=row.precision, agrees=None, text=f"could not run, because {row.error}"
            )
    return tuple(found.values())
