"""The JSON Schema of an event, on file for other languages. Run `python -m rollcast.records.schema` to renew it."""
