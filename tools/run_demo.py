"""./demo: sets up .venv, then hands over to play_demo.py there."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ctrl_c  # noqa: E402, F401  first
import setup_env  # noqa: E402


def main() -> int:
    """Becomes play_demo.py; 2 when .venv cannot be set up."""
    arguments = sys.argv[1:]
    asks = bool({"-h", "--help"} & set(arguments))
    # Its own video is made of photographs; whoever brings a file does not need them.
    brings = _names_a_source(arguments)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        python = setup_env.ensure("demo", *([] if brings or asks else ["photos"]))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # play_demo.py lets it through
    except setup_env.SetupError as error:
        print(f"./demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("./demo: stopped; the next run goes on from here.", file=sys.stderr)
        return 130
    player = Path(__file__).with_name("play_demo.py")
    os.execve(python, [str(python), str(player), *arguments], setup_env.environment())


def _names_a_source(arguments: list[str]) -> bool:
    """Whether one of them is no option and no option's value; every --option takes one."""
    words = iter(arguments)
    for word in words:
        if word.startswith("--") and "=" not in word:
            next(words, None)
        elif not word.startswith("-"):
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
