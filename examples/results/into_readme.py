"""Put the tables of the committed results into both READMEs, between ``<!-- NAME -->`` and ``<!-- /NAME -->``.

    python examples/results/into_readme.py

A result is a Markdown file ``examples/results/<folder>/<name>.md``; it goes to the marker
``<folder>/<name>``.
"""

from __future__ import annotations

import re
from pathlib import Path

from paddlelite_callbacks.utils.atomic_files import staged_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def main() -> None:
    """Rewrite both files; a marker without a result is an error."""
    results = {str(path.relative_to(HERE).with_suffix("")): path for path in HERE.glob("*/*.md")}
    for readme in (ROOT / "README.md", ROOT / "README_zh.md"):
        text = readme.read_text(encoding="utf-8")
        for name in re.findall(r"<!-- (\w+/\w+) -->", text):
            table = results[name].read_text(encoding="utf-8").strip()
            between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", flags=re.DOTALL)
            text = between.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
        with staged_file(readme) as partial:
            partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
