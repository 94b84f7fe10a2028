"""Networks: the Attention Branch Network, its construction from a classifier, architectures by name, checkpoints."""
