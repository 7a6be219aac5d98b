"""Write event.schema.json."""

import json
from pathlib import Path

from rollcast.records.codec import json_schema

path = Path(__file__).with_name("event.schema.json")
path.write_text(json.dumps(json_schema(), indent=2) + "\n")
print(path)  # noqa: T201
