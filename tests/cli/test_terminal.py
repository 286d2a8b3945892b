"""Text on terminals that know fewer letters."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from paddlelite_callbacks.utils.progress import write_lines
from paddlelite_callbacks.utils.terminal import degrading, printable


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "1 \u2014 2 \u00d7 \u4e2d \u2264"),
        ("latin-1", "1 - 2 \u00d7 ? <="),
        ("ascii", "1 - 2 x ? <="),
        (None, "1 - 2 x ? <="),
    ],
)
def test_letters_become_what_looks_like_them(encoding, text):
    assert printable("1 \u2014 2 \u00d7 \u4e2d \u2264", encoding) == text
    assert printable("bad \udcff", "utf-8") == "bad ?"


def test_a_stream_is_given_back_as_it_was():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with degrading(stream):
        stream.write("a \u2014 b")
    with pytest.raises(UnicodeEncodeError):
        stream.write("\u2014")
    stream.flush()
    assert raw.getvalue() == b"a - b"
    chosen = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="ignore")
    with degrading(chosen):
        assert chosen.errors == "ignore"
    with degrading(io.StringIO()):
        pass


def test_lines_of_a_training_do_not_end_it(capsys):
    write_lines("a \u2014 b")
    assert capsys.readouterr().out == "a \u2014 b\n"
    code = "from paddlelite_callbacks.utils.progress import write_lines; write_lines('a \\u2014 b')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.stdout == b"a - b\n", done.stderr
