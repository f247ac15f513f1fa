"""Picture bytes to content hash, pixels and embedding rows."""
