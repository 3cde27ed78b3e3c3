"""The pose node with lifecycle transitions as rclpy of Humble and Jazzy makes them.

There what the state machine refuses leaves the service's callback as an exception.
"""

import sys

from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn

from ehrnet_ros import pose_node


def change_state(self, transition_id):
    machine, call = self._state_machine, self._LifecycleNodeMixin__execute_callback
    number, label = machine.current_state
    before = LifecycleState(label=label, state_id=number)
    machine.trigger_transition_by_id(transition_id, True)
    result = call(machine.current_state[0], before)
    machine.trigger_transition_by_label(result.to_label(), True)
    if result == TransitionCallbackReturn.ERROR:
        after = call(machine.current_state[0], before)
        machine.trigger_transition_by_label(after.to_label(), True)
    return result


LifecycleNodeMixin._LifecycleNodeMixin__change_state = change_state
sys.exit(pose_node.main())
