"""Who may use the server, and how much: the way in (gate), the keys (ring), their counters (meter), and what is each
key's own (owned)."""
