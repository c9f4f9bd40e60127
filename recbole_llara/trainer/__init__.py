"""Trainers: RecBole's own for stock models, ours for LLM recommenders; both evaluate over candidates."""
