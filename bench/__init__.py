"""Workloads and measurements; ``python -m bench.NAME --help`` says what each takes."""
