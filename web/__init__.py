"""The HTTP service: routes, request schemas, uploads, streaming and the page."""
