# %% [markdown]
# # From a run to plots, in Python
#
# This notebook trains two systems on MovieLens-100K, compares them, draws plots, recommends films, and explains one recommendation. It needs no GPU and no
# download: the data lie in the RecBole package, and the small Llama in this one. [Install](install.md) the package first, then run the cells from
# top to bottom. On one thread of a busy machine it took seven minutes.
#
# The same is there as a [notebook](notebook.ipynb) and as a [plain script](notebook.py): `python notebook.py`.

# %% [markdown]
# ## Set up
#
# `prepare_process` sets up this process for speed, as the command line does. The other line switches progress bars off.

# %%
from recbole_llara.utils.process_setup import prepare_process

prepare_process()

from transformers.utils import logging

logging.disable_progress_bar()

# %% [markdown]
# ## Settings
#
# A run is described by keys. Any key of [the list](keys.md) can be given here. These budgets are small: three epochs for SASRec, 3,200 rows for
# LLaRA.

# %%
DATA = {"dataset": "ml-100k", "protocol": "leave_one_out"}
QUIET = {"show_progress": False, "state": "WARNING"}
SASREC = {"epochs": 3}
LLARA = {"epochs": 1, "max_train_rows": 3200}

# %% [markdown]
# ## The data
#
# Every user's last film is the test row, and the one before it the validation row. Each of these rows has 20 candidates: the target, and 19 films that the
# user has not taken. Popular films are seldom among the 19, so even *the most popular candidate* is right more often than chance (.05).

# %%
from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.data.statistics import data_statistics

data = prepare_data(RunConfig("LLaRA", config_dict={**DATA, **QUIET}))
counted = data_statistics(data)
print(f"{counted.users} users, {counted.items} films, {counted.interactions:,} interactions, density {counted.density:.1%}")
print("rows:", counted.rows)
print(f"HitRatio@1 of the most popular candidate: {counted.popularity_hit['test']:.3f}")

# %% [markdown]
# ## A recommender: SASRec
#
# `run_recbole_llara` trains a model, answers the test rows, and writes a folder. It returns the metrics and the paths.

# %%
from recbole_llara import run_recbole_llara

sasrec = run_recbole_llara("SASRec", config_dict={**DATA, **QUIET, **SASREC})
print("SASRec, HitRatio@1:", sasrec["test_result"]["hit@1"])

# %% [markdown]
# ## An LLM over it: LLaRA(SASRec)
#
# LLaRA reads titles and *behavioural tokens*: SASRec's item embeddings, sent through a projector. `rec_checkpoint` gives it the SASRec of the cell above; without
# this key it trains one of its own.

# %%
llara = run_recbole_llara("LLaRA", config_dict={**DATA, **QUIET, **LLARA, "rec_checkpoint": sasrec["checkpoint"]})
print("LLaRA(SASRec), HitRatio@1:", llara["test_result"]["hit@1"])

# %% [markdown]
# ## What the LLM reads
#
# `load` opens the finished run. This is the prompt of one question; `[*]` is the behavioural token of the title before it.

# %%
import textwrap

from recbole_llara import load
from recbole_llara.serving.http.compared import prompt_views

HISTORY = ["Toy Story", "GoldenEye", "Four Rooms", "Star Wars"]

run = load(llara["run_dir"])
history = run.items("history", HISTORY)
candidates, _ = run.asked([history], None, None)
(view,) = prompt_views(run.model.tokenizer, run.prompts([history], candidates), run.names)
prompt = "".join(segment.get("text", "[*]") for segment in view["segments"])
print(textwrap.fill(prompt, 100))
print(f"{view['tokens']} tokens")

# %% [markdown]
# ## Compare
#
# Both systems answered the same rows and the same candidates. The table has the 95 % interval of each; McNemar's test looks at the rows on which only one of
# them is right.

# %%
import json
from pathlib import Path

from recbole_llara.checkpoint.run_folder import read_records
from recbole_llara.evaluator.report import comparison_table, paired_test_lines

results = [json.loads(Path(done["result_file"]).read_text(encoding="utf-8")) for done in (sasrec, llara)]
print(comparison_table(results))
print()
print("\n".join(paired_test_lines(*(read_records(done["cases_file"]) for done in (sasrec, llara)), "SASRec", "LLaRA(SASRec)")))

# %% [markdown]
# ## Plot: HitRatio@1 with intervals
#
# The dashed line is the most popular candidate. The plot is written to a file too, alive and without a network.

# %%
import plotly.graph_objects as go

intervals = [result["interval_95"] for result in results]
shares = [interval["share"] for interval in intervals]
figure = go.Figure(
    go.Bar(
        x=["SASRec", "LLaRA(SASRec)"],
        y=shares,
        width=0.5,
        error_y={
            "array": [interval["high"] - interval["share"] for interval in intervals],
            "arrayminus": [interval["share"] - interval["low"] for interval in intervals],
        },
    )
)
figure.add_hline(y=counted.popularity_hit["test"], line_dash="dash")
figure.update_layout(
    template="plotly_white", height=350, width=600, yaxis_title="HitRatio@1", title=f"n = {results[0]['n']} test rows"
)
figure.write_html("intervals.html")
figure

# %% [markdown]
# ## Plot: who is right on which films
#
# Test rows by how many users took the target in training. Rare films are harder for both.

# %%
import pandas as pd

LEVELS = [-1, 20, 50, 100, 200, 1000]
NAMES = ["up to 20", "21 to 50", "51 to 100", "101 to 200", "over 200"]
figure = go.Figure()
for name, done in (("SASRec", sasrec), ("LLaRA(SASRec)", llara)):
    cases = pd.DataFrame(read_records(done["cases_file"]))
    level = pd.cut(cases["target_users"], LEVELS, labels=NAMES)
    by_level = cases.groupby(level, observed=False)["correct"].agg(["mean", "size"])
    figure.add_bar(name=name, x=[f"{name} (n = {size})" for name, size in by_level["size"].items()], y=by_level["mean"])
figure.update_layout(
    template="plotly_white",
    margin={"t": 30},
    height=350,
    width=800,
    yaxis_title="HitRatio@1",
    xaxis_title="users of the target in training",
)
figure.write_html("levels.html")
figure

# %% [markdown]
# ## Recommend
#
# SASRec proposes 20 unseen films, and LLaRA ranks them. The score is the log-likelihood of the title; `recommender_rank` is SASRec's own rank.

# %%
for item in run.recommend(HISTORY, k=5):
    print(f"{item.rank}. {item.title:45} {item.score:8.3f}   SASRec's rank {item.recommender_rank}")

# %% [markdown]
# ## Explain
#
# The run is asked again with parts of the question left out. *Change* says how the log-probability of the first item moves. [Recommend](recommend.md#where-an-answer-comes-from)
# explains each line.

# %%
from recbole_llara.serving.explain import explain
from recbole_llara.serving.explain_text import as_text

print(as_text(explain(run, HISTORY)))

# %% [markdown]
# ## Next
#
# - These budgets are small. [Results](results.md) tells what more rows and more epochs give.
# - [Your own dataset](own_dataset.md), [your own LLM](own_llm.md), [a study of several systems](studies.md).
# - [Compare fairly](compare.md) before you believe a difference.
