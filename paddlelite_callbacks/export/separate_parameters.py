"""Read Paddle 2 programs with one file per parameter, or all in ``params``.

``__model__`` with one file per parameter is what Paddle 1 and the first Paddle 2 wrote, and what old model zoos hold.
A combined file is the concatenation of the single ones in the order of their names.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from paddlelite_callbacks.export.program_desc import read_program_desc

__all__ = ["MODEL", "as_pair", "parameter_files"]

MODEL = "__model__"
_COMBINED = ("params", "__params__")
_FEED, _FETCH = 9, 10  # of VarType: variables of inputs and outputs, which hold no values


def parameter_files(program: Path) -> tuple[Path, ...]:
    """Return the parameter files of a program, in the order of a combined file.

    Args:
        program: Program of Paddle 2.

    Raises:
        ValueError: Some files are missing; names them.
    """
    variables = read_program_desc(program).blocks[0].vars
    names = sorted(one.name for one in variables if one.persistable and one.type.type not in (_FEED, _FETCH))
    files = [program.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if not missing:
        return tuple(files)
    for name in _COMBINED:
        if (program.parent / name).is_file():
            return (program.parent / name,)
    combined = f"{program.stem}.pdiparams" if program.suffix else _COMBINED[0]
    raise ValueError(
        f"{program} has no parameters beside it: {combined} is missing, and of {len(files)} files of single parameters "
        f"{len(missing)} are ({', '.join(missing[:3])}). Copy the whole folder."
    )


@contextmanager
def as_pair(files: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """Yield the files of a Paddle model as a pair of program and parameters.

    Args:
        files: The program first; a pair with the usual names is returned as it is.
    """
    program, *parameters = files
    if len(parameters) == 1 and parameters[0].suffix == ".pdiparams" and program.name != MODEL:
        yield tuple(files)
        return
    with tempfile.TemporaryDirectory() as folder:
        pair = Path(folder, "model.pdmodel"), Path(folder, "model.pdiparams")
        shutil.copyfile(program, pair[0])
        with pair[1].open("wb") as target:
            for file in parameters:
                with file.open("rb") as source:
                    shutil.copyfileobj(source, target)
        yield pair
