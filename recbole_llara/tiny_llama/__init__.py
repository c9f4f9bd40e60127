"""The embedded LLM: a small Llama that lets every path run with no GPU and no network, and what made it. Not Llama-2."""
