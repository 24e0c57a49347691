"""One training loop for every objective, on one CPU or many GPUs. It imports no axis, no recipe and no objective."""
