"""Training on COCO-format keypoints. Needs torch."""
