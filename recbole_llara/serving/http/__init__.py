"""``recbole-llara serve``: one HTTP service over a finished run, and a page that shows it beside others."""
