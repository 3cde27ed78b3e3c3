# Sourced by ./demo and ./check: sets PYTHON to an interpreter from 3.10 to 3.13.
# PYTHON=/path/to/python ./demo chooses one.

# A sourced ROS 2 or another virtual environment must not reach into .venv.
unset PYTHONPATH PYTHONHOME _ROS_WHEELS_BOOTSTRAP_COMPLETE

usable() {
  "$1" -I -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

if [ -n "${PYTHON:-}" ]; then
  if ! usable "$PYTHON"; then
    echo "$0: PYTHON=$PYTHON is not a Python from 3.10 to 3.13." >&2
    exit 2
  fi
else
  # The interpreter .venv was made with comes first: changing it would mean a new .venv.
  made_with=$(sed -n 's/^executable = //p' "$root/.venv/pyvenv.cfg" 2>/dev/null || true)
  for candidate in "$made_with" python3 python3.12 python3.11 python3.13 python3.10 \
    /usr/bin/python3 "$HOME"/.pyenv/versions/3.1[0-3].*/bin/python3; do
    if [ -n "$candidate" ] && usable "$candidate"; then
      PYTHON=$candidate
      break
    fi
  done
  if [ -z "${PYTHON:-}" ]; then
    echo "$0: no Python from 3.10 to 3.13 is on the PATH ($(python3 --version 2>&1 || true)):" \
      "install one (apt install python3.12 python3.12-venv python3.12-dev), or name it:" \
      "PYTHON=/path/to/python3.12 $0" >&2
    exit 2
  fi
fi
