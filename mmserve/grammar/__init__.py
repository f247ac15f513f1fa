"""Constrained generation: what may be asked for (``spec``), and how it is enforced, by llguidance."""
