"""The MQTT side of the agent: topics, the host's session with the broker, and the operator's connection."""
