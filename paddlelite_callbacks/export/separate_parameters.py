"""Programs of Paddle 2 whose parameters lie in files of their own names: one each, or all in ``params``.

``__model__`` with a file a parameter is what Paddle 1 and the first Paddle 2 wrote, and what old model zoos hold. A
combined file is nothing but the single ones behind each other, in the order of their names.
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
_FEED, _FETCH = 9, 10  # of VarType: the places of inputs and outputs, which hold no values


def parameter_files(program: Path) -> tuple[Path, ...]:
    """Return the files with the parameters of a program that has no ``.pdiparams``, in the order of a combined file.

    Args:
        program: of Paddle 2.

    Raises:
        ValueError: some are missing; names them.
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
    """Give the files of a Paddle model as the pair that engines and converters read, within the block.

    Args:
        files: the program first; a pair of the usual names is given as it is.
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
