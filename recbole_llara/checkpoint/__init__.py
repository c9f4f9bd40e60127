"""What a run keeps on disk: its folder, its weights by format, its training states, and what they belong to."""
