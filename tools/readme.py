"""Writes the generated sections of README.md; with --check only says whether they are current.

python tools/readme.py [--check]
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def parameters() -> str:
    """The node's parameters, from their declaration."""
    from ehrnet_ros.parameters import parameters_table

    return parameters_table().strip()


def variants() -> str:
    """What `ehrnet variants` prints."""
    from ehrnet_ros.cli import main

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main(["variants"])
    table = text.getvalue().split("\n\nMACs:")[0].strip("\n")
    return f"```\n{table}\n```"


SECTIONS = {"parameters": parameters, "variants": variants}


def filled(text: str) -> str:
    """The README with every section as it should be."""
    for name, make in SECTIONS.items():
        pattern = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
        found = list(re.finditer(pattern, text, flags=re.S))
        if len(found) != 1:
            raise SystemExit(f"README.md has {len(found)} sections '{name}', expected one.")
        start, end = found[0].span()
        text = f"{text[:start]}{make()}\n{text[end:]}"
    return text


def main() -> int:
    """Checks or writes."""
    old = README.read_text()
    new = filled(old)
    if "--check" in sys.argv[1:]:
        if new != old:
            print("README.md is not current: run `python tools/readme.py`.", file=sys.stderr)
        return int(new != old)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
