"""Another path to what `rollcast.text` has for terminals, under the names of 0.1.0."""

from __future__ import annotations

from rollcast.text import is_terminal_safe as is_safe
from rollcast.text import printable_line as one_line
from rollcast.text import shorten, visible
from rollcast.text import terminal_safe_json as json_safe

__all__ = ["is_safe", "json_safe", "one_line", "shorten", "visible"]
