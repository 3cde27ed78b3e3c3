"""The life of a node's process: signals, ROS, the executor, and an orderly end."""

from __future__ import annotations

import signal
import threading
from typing import Any, Callable, List, Optional

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.cuda import DeviceLost


def spin(name: str, make: Callable[[], Any], args: Optional[List[str]] = None) -> int:
    """Runs a node until SIGINT, SIGTERM or its own end.

    Args:
        name: of the node, for what is said before there is one.
        make: gives the node, a rclpy Node that also has ``start()``, called once it is in the
            executor, ``done``, whether it has come to its own end, and ``close()``, called when
            the executor has stopped.
        args: as of main().

    Returns:
        The exit code: 0; 2 when the node could not start or an EhrnetError ended it; 3 when the
        GPU was lost to this process, so that whoever started it may do so again.

    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = make()
    except Exception as error:  # a params_file that is none ends here too, with ROS's own words
        rclpy.logging.get_logger(name).fatal(f"The node {name} cannot start. {error}")
        rclpy.try_shutdown()
        return 2
    code = 0
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        node.start()
        while not (stop.is_set() or node.done):
            executor.spin_once(timeout_sec=0.1)
    except EhrnetError as error:
        node.get_logger().fatal(str(error))
        code = 3 if isinstance(error, DeviceLost) else 2
    executor.shutdown()
    node.close()
    node.destroy_node()
    rclpy.try_shutdown()
    return code
