"""Networks: the ABN, cutting and wrapping classifiers, the shared forward pass, checkpoints, names."""
