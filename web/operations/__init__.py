"""What those who run a server need: metrics, traces, a line in the log for each request, an orderly start and end."""
