"""The engine, free of RecBole: a causal LM, what of it is tuned, and the likelihood of answers behind hybrid prompts."""
