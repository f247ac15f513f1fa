"""The serving engine: a pure scheduler plans, the runner executes, the loop updates."""
