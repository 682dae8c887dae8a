"""Why a host does not do what it should: everything that the agent needs of it, looked at once, nothing changed."""
