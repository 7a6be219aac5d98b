"""Write frames.schema.json."""

import json
from pathlib import Path

from rollcast.serve.schema import frames_schema

path = Path(__file__).with_name("frames.schema.json")
path.write_text(json.dumps(frames_schema(), indent=2) + "\n")
print(path)  # noqa: T201
