"""Write the table of docs/exports/operators.md anew, or with --check tell whether it is as it would be written."""

from __future__ import annotations

import sys
from pathlib import Path

from detent.exporters.matrix import as_markdown

PAGE = Path(__file__).parent / "exports" / "operators.md"
BEGIN, END = "<!-- operators: begin -->\n", "<!-- operators: end -->\n"


def main() -> None:
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    wanted = f"{head}{BEGIN}\n{as_markdown()}\n{END}{tail}"
    if "--check" in sys.argv[1:]:
        sys.exit(0 if wanted == text else f"{PAGE} is not what {Path(__file__).name} writes: run it")
    PAGE.write_text(wanted)


if __name__ == "__main__":
    main()
