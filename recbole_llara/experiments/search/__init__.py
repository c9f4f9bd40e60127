"""Hyper-parameter search in RecBole's manner: ``python -m recbole_llara.experiments.search --model=M --dataset=D --params_file=F``.

parameters (a file) -> definition (what is searched) -> sampling (the next trial) -> run (trials, kept by optuna) -> report
(the best configuration as YAML, tables, a figure).
"""
