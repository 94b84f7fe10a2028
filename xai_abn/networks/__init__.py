"""Networks: the Attention Branch Network, how it is made of a classifier, architectures by name, checkpoints."""
