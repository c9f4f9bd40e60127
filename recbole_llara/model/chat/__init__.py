"""A chat model behind an API: asking it, and reading what it writes."""
