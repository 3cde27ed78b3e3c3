"""./demo: sets up .venv, then hands over to play_demo.py there."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ctrl_c  # noqa: E402, F401  first

# isort: split
import demo_arguments  # noqa: E402
import setup_env  # noqa: E402


def main() -> int:
    """Becomes play_demo.py; 2 when .venv cannot be set up."""
    arguments = sys.argv[1:]
    # Its own video is made of photographs; whoever brings a file does not need them.
    photos = ["photos"] if demo_arguments.parse(arguments).source is None else []
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        python = setup_env.ensure("demo", *photos)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # play_demo.py lets it through
    except setup_env.SetupError as error:
        print(f"./demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("./demo: stopped; the next run goes on from here.", file=sys.stderr)
        return 130
    player = Path(__file__).with_name("play_demo.py")
    os.execve(python, [str(python), str(player), *arguments], setup_env.environment())


if __name__ == "__main__":
    sys.exit(main())
