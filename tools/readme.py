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
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        body = make()
        text, count = re.subn(
            pattern, lambda m, body=body: f"{m[1]}{body}\n{m[2]}", text, flags=re.S
        )
        if count != 1:
            raise SystemExit(f"README.md has {count} sections '{name}', expected one.")
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
