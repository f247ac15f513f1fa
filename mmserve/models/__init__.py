"""Decoders of the served families, one small file a family, and the weight loader."""
