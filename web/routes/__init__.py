"""One module a group of routes; each has a function that makes a router for a ``Service``."""
