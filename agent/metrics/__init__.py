"""What Prometheus may know of the agent: counted while it works, gathered when it is asked for."""
