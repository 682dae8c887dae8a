"""How a disk is made on this host: specs, observe, plan, apply.

This is the lower of the two floors. It knows no MQTT and no XML; `agent` imports it, never the other way.
"""
