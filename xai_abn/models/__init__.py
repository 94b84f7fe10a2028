"""Models ready to be explained: adapters, forward passes, targets, fast copies, ONNX export, models by name."""
