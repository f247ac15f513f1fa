"""docs/tour.md, made: every command of ``source.md`` is run and every picture of the page taken, so neither goes stale.

``python -m tour`` writes docs/tour.md and docs/tour/. ``script`` reads the source and puts results in, ``commands``
runs them, ``shots`` drives the page, ``pictures`` draws what is asked about.
"""
