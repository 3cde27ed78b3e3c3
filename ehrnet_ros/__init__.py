"""What runs: the ROS 2 nodes and the command `ehrnet`."""
