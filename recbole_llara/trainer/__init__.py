"""The trainer of LLM recommenders; that of stock models stands in ``recommender.stock``."""
