"""The recommenders that are no LLMs: the frozen one whose item embeddings a prompt shows, MoRec, Popularity, EASE."""
