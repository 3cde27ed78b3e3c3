"""The EfficientHRNet network in PyTorch, its checkpoints and its export."""
