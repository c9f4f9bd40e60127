"""The LLM recommenders: LLaRA, RSLLM, TALLRec, zero-shot and chat, on one base."""
