"""Several systems on the same rows and candidates, over seeds: ``python -m recbole_llara.experiments.study NAME [--key=value ...]``.

definition (a YAML file) -> arms (what is run) -> run (with what is finished already) -> summary (statistics) ->
tables, figures and a page.
"""
