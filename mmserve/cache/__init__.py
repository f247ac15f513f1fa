"""Content-addressed caches: the radix tree over KV slots, the slot pool, and the encoder cache."""
