"""One model over several processes, one a GPU (tensor parallelism)."""
