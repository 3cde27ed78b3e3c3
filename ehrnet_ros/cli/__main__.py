"""``python -m ehrnet_ros.cli`` is ``ehrnet``."""

import sys

from ehrnet_ros.cli import main

sys.exit(main())
