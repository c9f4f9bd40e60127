"""What the tests of this folder share."""

from toy_run import keys, make_trainer, save_llm  # noqa: F401
