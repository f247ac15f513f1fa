"""Sound files to embedding rows. What plans is torch-free; ``features`` and ``encoder`` are what computes."""
