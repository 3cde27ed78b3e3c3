"""From an image to poses. Needs numpy and OpenCV; never torch, never ROS."""
