"""The engine in a process of its own, behind ``EngineClient``; its parent loads no torch.

``client`` is what callers hold; ``supervisor`` starts the process and starts it again; ``link`` is the parent's end of
one such process, and ``child`` the other; ``messages`` travel between them, framed by ``channel``.
"""
