"""All figures of one run as Markdown tables."""

from __future__ import annotations

from paddlelite_callbacks.report.record import Record

__all__ = ["accuracy_table", "check_table", "latency_table", "noted"]

_DASH = "\u2014"


def noted(record: Record) -> str:
    """Return a line on the network, the weights and the machine.

    Args:
        record: of one run.
    """
    macs = "" if record.macs is None else f", {record.macs / 1e6:.1f} M multiply-accumulates an image"
    epoch = "" if record.epoch is None else f", weights of epoch {record.epoch}"
    rooflines = ", ".join(f"{gflops:.0f} GFLOP/s on {n} thread(s)" for n, gflops in record.roofline_gflops.items())
    governor = f", governor {record.machine.governor}" if record.machine.governor else ""
    machine = f"{record.machine.cpu}, {record.machine.cores} cores{governor}"
    product = f"; fastest matrix product: {rooflines}" if rooflines else ""
    return f"{record.parameters / 1e6:.2f} M parameters{macs}{epoch}; {machine}{product}"


def latency_table(record: Record) -> list[str]:
    """Return a row per engine, file and setting; an engine that failed gives its reason.

    Args:
        record: of one run.
    """
    head = ["engine", "file", "threads", "batch", "p50 ms", "p90 ms", "spread", "images/s", "load ms", "peak MB"]
    lines = [_row([*head, "roofline", "reason"]), "|---|---|" + "---:|" * 9 + "---|"]
    for row in record.latencies:
        figures = [_number(v, 2) for v in (row.p50_ms, row.p90_ms)]
        figures += [_percent(row.spread), _number(row.images_per_s, 1), _number(row.load_ms, 0)]
        figures += [_number(row.peak_mb, 1), _percent(row.roofline)]
        differs = record.differing(row.engine, row.precision)
        said = row.error or ("" if differs is None else f"does not count: {differs}")
        lines.append(_row([row.engine, row.precision, str(row.threads), str(row.batch_size), *figures, said]))
    spread = "spread: distance of the quartiles over the median; load and peak: in a process of its own"
    share = "roofline: share of this machine's fastest matrix product (above 100 % by algorithms that multiply less)"
    return [*lines, "", f"{spread}; {share}."] if record.latencies else []


def accuracy_table(record: Record) -> list[str]:
    """Return the metrics as measured on the files, a row per engine, below the live network's.

    Args:
        record: of one run.
    """
    if not record.file_metrics:
        return []
    names = list(dict.fromkeys(name for row in record.file_metrics for name in row.metrics))
    lines = [_row(["engine", "file", *names, "images", "reason"]), "|---|---|" + "---:|" * (len(names) + 1) + "---|"]
    live = [_number(record.metrics.get(name), 6) for name in names]
    lines.append(_row(["live network", _DASH, *live, _DASH, ""]))
    for row in record.file_metrics:
        values = [_number(row.metrics.get(name), 6) for name in names]
        lines.append(_row([row.engine, row.precision, *values, str(row.samples), row.error or ""]))
    return lines


def check_table(record: Record) -> list[str]:
    """Return how far each file's outputs are from the live network's, and each engine's verdict.

    Args:
        record: of one run.
    """
    head = ["engine", "file", "largest difference", "mean difference", "same top-1", "allowed", "verdict"]
    lines = [_row(head), "|---|---|---:|---:|---:|---:|---|"]
    for check in record.checks:
        figures = [f"{v:.3g}" if v is not None else _DASH for v in (check.max_abs_diff, check.mean_abs_diff)]
        allowed = _DASH if check.tolerance is None else f"{check.tolerance:.3g}"
        lines.append(
            _row([check.engine, check.precision, *figures, _percent(check.top1_agreement), allowed, check.verdict])
        )
    for verdict in record.verdicts:
        if verdict.agrees is None:
            lines.append(_row([verdict.engine, verdict.precision, *[_DASH] * 4, verdict.text]))
    return lines if len(lines) > 2 else []


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: float | None, digits: int) -> str:
    return _DASH if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return _DASH if value is None else f"{100 * value:.1f} %"
