"""`tapster schema`: the shapes of all that goes over the bus, for programs that read or write it."""

import json
import sys

from agent.schema import asyncapi as asyncapi_document
from agent.schema import schemas


def run(*, asyncapi: bool) -> int:
    """Print JSON Schemas by name, or one AsyncAPI document; returns 0."""
    sys.stdout.write(json.dumps(asyncapi_document() if asyncapi else schemas(), indent=2) + "\n")
    return 0
