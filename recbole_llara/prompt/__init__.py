"""Prompts: how an item is written (representation), the sentences around it (template), the tokens of both (encoding)."""
