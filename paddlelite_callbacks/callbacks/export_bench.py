"""`ExportBenchCallback`: the shell around export, check, benchmark and record."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer
from paddle.static import InputSpec
from tqdm import tqdm

from paddlelite_callbacks.callbacks.base import ScopedCallback
from paddlelite_callbacks.deploy.bench import BenchOptions, bench
from paddlelite_callbacks.deploy.export import ExportError, copy_network, staged_folder
from paddlelite_callbacks.deploy.forms import export_forms, references
from paddlelite_callbacks.deploy.machine import this_machine
from paddlelite_callbacks.deploy.verdict import int8_notes
from paddlelite_callbacks.report.gate import Budget, judge
from paddlelite_callbacks.report.record import ArtefactFigures, Record, append_record, now

__all__ = ["ExportBenchCallback"]

_log = logging.getLogger(__name__)
_ROWS = 8  # of the first training batch, for the checks


class ExportBenchCallback(ScopedCallback):
    """Export the trained network when ``fit`` has ended, check what was written, and time it on the CPU.

    Written into ``folder/name``: ``model.json`` + ``model.pdiparams`` (``paddle.jit.save``; int8 weights for a
    network trained with PACT) and, with the extra ``deploy``, ``model.onnx`` (fp32) and for a network trained with
    PACT ``model.int8.onnx``, which computes in int8 (see `export_forms`). All of it is made from a copy, loaded
    again by every engine, and compared with the live network on images of the first training batch; a difference
    beyond the tolerance fails the export. Only a set that passed takes the place of an older one. The figures are
    appended to ``folder/runs.jsonl``. It all happens behind hapi's last checkpoint; the model is left as found.

    Args:
        folder: of this and further runs; made if missing.
        name: of the run and its subfolder; the network's class name if ``None``.
        input_spec: one `InputSpec` per input; ``None`` takes the sizes of the first batch with a free batch size.
        engines: some of ``"paddle"`` (Paddle Inference without oneDNN, as the guide measured), ``"paddle-onednn"``
            (Paddle 3's default), ``"onnxruntime"``, ``"openvino"``; ``None`` for all. One that is missing or fails
            gives its reason in the record.
        threads: CPU threads of each engine.
        batch_size: of the timed calls.
        warmup: timed calls that are not counted.
        repeats: timed calls that are.
        budget: a `Budget` to print the verdict of.
        verbose: 1 shows a progress bar and one line per engine, 0 nothing.

    Attributes:
        record: the `Record` of the last ``fit``; ``None`` before it has ended.
        verdict: its `Verdict`, where a budget was given.

    Raises:
        ValueError: an unknown engine, a number out of range, a name that is no plain folder name.
        ExportError: at the end of ``fit``: the network cannot be exported, or a file computes something else.
        OSError: at train begin: ``folder`` cannot be written to.

    Example:
        >>> model.fit(train_data, epochs=10, callbacks=[ExportBenchCallback("out")])  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        input_spec: Sequence[InputSpec] | None = None,
        engines: Sequence[str] | None = None,
        threads: int = 1,
        batch_size: int = 1,
        warmup: int = 10,
        repeats: int = 50,
        budget: Budget | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        if name is not None and (name in ("", ".", "..") or Path(name).name != name or name.startswith(".")):
            raise ValueError(f"name becomes a folder inside {folder}, so it must be a plain name, got {name!r}.")
        self.folder, self.name, self.input_spec = Path(folder), name, input_spec
        self.options = BenchOptions(
            engines=engines, threads=threads, batch_size=batch_size, warmup=warmup, repeats=repeats
        )
        self.budget, self.verbose = budget, verbose
        self.record: Record | None = None
        self.verdict: Any = None
        self._sample: list[np.ndarray] | None = None
        self._metrics: dict[str, float] = {}

    def check(self) -> None:
        """Refuse a folder that cannot be written to, before hours of training."""
        super().check()
        existing = self.folder
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise PermissionError(f"{self.folder} cannot be written to ({existing} is no writable folder).")

    def attach(self, scope: ExitStack) -> None:
        """Keep a few images of the first batch."""
        self._sample, self._metrics, self.record, self.verdict = None, {}, None, None
        hook = self.model.network.register_forward_pre_hook(self._keep_sample)
        scope.callback(hook.remove)

    def on_eval_end(self, logs: dict[str, Any] | None = None) -> None:
        """Keep the figures of the evaluation (called by hapi)."""
        for key, value in (logs or {}).items():
            number = value[0] if isinstance(value, (list, tuple)) else value
            if key not in ("step", "batch_size", "steps") and isinstance(number, (int, float, np.floating)):
                self._metrics[key] = float(number)

    def finish(self) -> None:
        """Export, check, time, record; on rank 0 alone.

        Raises:
            ExportError: see the class.
        """
        if paddle.distributed.get_rank() != 0:
            return
        if self._sample is None:
            raise ExportError("No training batch was seen, so the inputs are unknown: nothing was exported.")
        name = self.name or type(self.model.network).__name__
        with staged_folder(self.folder / name) as stage:
            record = self._made_in(stage, name)
        append_record(self.folder / "runs.jsonl", record)
        self.record, self.verdict = record, None if self.budget is None else judge(record, self.budget)
        if self.verbose:
            tqdm.write(self.summary())

    def summary(self) -> str:
        """Return the figures of the last run, a line per engine.

        Raises:
            RuntimeError: no ``fit`` has ended yet.
        """
        record = self.record
        if record is None:
            raise RuntimeError("There are no figures yet: they are ready when fit() has returned.")
        size = "no Paddle export" if record.size_mb is None else f"{record.size_mb:.2f} MB"
        lines = [f"{record.name}: {size}, {record.parameters / 1e6:.2f} M parameters, {self.folder / record.name}"]
        lines += [
            f"  {row.engine:<14}{row.precision:<5} "
            + (f"{row.p50_ms:8.2f} ms (p90 {row.p90_ms:.2f})" if row.p50_ms is not None else f"no figure: {row.error}")
            for row in record.latencies
        ]
        lines += [f"  {note}" for note in record.notes]
        return "\n".join([*lines, *([f"  gate: {self.verdict}"] if self.verdict is not None else [])])

    def _keep_sample(self, network: Layer, inputs: tuple[Tensor, ...]) -> None:
        if self._sample is None and network.training:
            self._sample = [item[:_ROWS].detach().cpu().numpy() for item in inputs]

    def _made_in(self, stage: Path, name: str) -> Record:
        network = copy_network(self.model.network)
        sample = self._sample or []
        expected = references(network, sample)
        wants_onnx = any(engine.kind == "onnx" for engine in self.options.chosen())
        forms = export_forms(network, stage, input_spec=self._specs(), onnx=wants_onnx)
        artefacts = forms.artefacts
        checks, latencies = bench(
            artefacts, sample, expected, self.options, errors=forms.errors, progress=bool(self.verbose)
        )
        wrong = [check for check in checks if not check.passed]
        if wrong:
            raise ExportError(
                f"The export of {name} computes something else than the network: "
                + "; ".join(
                    f"{c.engine}/{c.precision}: {c.error or f'{c.max_abs_diff:.3g} > {c.tolerance:.3g}'}" for c in wrong
                )
            )
        figures = [ArtefactFigures.of(a) for a in artefacts]
        return Record(
            name=name,
            created=now(),
            parameters=_count_parameters(self.model.network),
            artefacts=(
                *(
                    ArtefactFigures(**{**vars(f), "path": str(self.folder / name / a.path.name)})
                    for f, a in zip(figures, artefacts, strict=True)
                ),
                *(ArtefactFigures(kind=k, precision=p, error=error) for (k, p), error in forms.errors.items()),
            ),
            latencies=latencies,
            checks=checks,
            metrics=dict(self._metrics),
            machine=this_machine(),
            command=shlex.join(sys.orig_argv),
            notes=(*int8_notes(latencies), *self._notes_of_others()),
        )

    def _notes_of_others(self) -> list[str]:
        members = [] if self._session is None else self._session.members
        return [note for member in members if hasattr(member, "notes") for note in member.notes()]

    def _specs(self) -> Sequence[InputSpec]:
        if self.input_spec is not None:
            return self.input_spec
        return [
            InputSpec([None, *item.shape[1:]], dtype=str(item.dtype), name=f"x{i}" if i else "x")
            for i, item in enumerate(self._sample or [])
        ]


def _count_parameters(network: Layer) -> int:
    aside = ("._mean", "._variance", ".activation_quanter.alpha")
    return sum(int(np.prod(p.shape)) for name, p in network.named_parameters() if not name.endswith(aside))
