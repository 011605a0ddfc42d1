# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What made the run of huggingface/peft issue 1715 go NaN?
#
# Gemma 7B in 4 bits (NF4), LoRA on q, v, embedding and head, a vocabulary extended by rows of zeros, the paged 8-bit
# AdamW, bf16, gradient checkpointing: the loss fell for a few steps, then it was NaN. Here the same recipe is run on
# the real Gemma 3 270M in 49 combinations of levels and 3 seeds. The hypotheses were written before the runs
# (`conf/hypotheses`). `python -m src.run -m +experiment=peft1715` runs the cells.

# %% tags=["parameters"]
GRID = "outputs/peft1715"
HYPOTHESES = "conf/hypotheses"

# %%
from pathlib import Path

import pandas as pd
from IPython.display import SVG, display

from nangrid.analysis.evidence import gather
from nangrid.analysis.histories import column
from nangrid.analysis.survival import common_horizon
from nangrid.records.grid import GridDirectory
from nangrid.reporting.figures import effects_figure, traces_figure
from nangrid.reporting.report import events_of, traces_of

pd.set_option("display.max_rows", 300, "display.max_colwidth", 120)
evidence = gather(GridDirectory.at(GRID), Path(HYPOTHESES))
times = evidence.times
issue = {
    "optim": "paged_adamw_8bit",
    "upcast": "none",
    "checkpointing": "on",
    "quant": "nf4",
    "targets": "qv_embed_head",
    "optim.lr": "0.0002",
    "optim.eps": "1e-08",
    "data.bos": "True",
}
reported = {factor: level for factor, level in issue.items() if factor in times}

# %% [markdown]
# ## The run as it was reported, and in other dtypes
#
# Everything except dtype and rows is as in the issue: event and onset step per seed.

# %%
ending = times["event"].fillna("finite") + " (" + times["time"].astype("string") + " steps)"
as_reported = times.assign(ending=ending)[(times[list(reported)] == pd.Series(reported)).all(axis="columns")]
as_reported.pivot(index=["dtype", "init"], columns="seed", values="ending").fillna("not run")

# %% [markdown]
# ## What caused it
#
# Causes and cures of each event, with the cells that prove them.

# %%
print("\n".join(evidence.verdict))

# %% [markdown]
# ## Range or precision?
#
# The largest gradient norm of each cell before clipping. Zero rows raise it by orders of magnitude in *every* dtype,
# float32 included: an RMSNorm at a row of zeros multiplies the gradient by 1/sqrt(eps) = 1000, norm after norm. bf16
# has float32's range and carries it; fp16 ends at 65504.

# %%
norms = times.assign(
    largest_norm=[
        pd.Series(column(evidence.histories[cell], "grad_norm")).max() if cell in evidence.histories else None
        for cell in times["cell_id"]
    ]
)
bos = [factor for factor in ("data.bos",) if factor in times]
norms.pivot_table(index=["dtype", *bos], columns="init", values="largest_norm", aggfunc="median").map("{:.3g}".format)

# %%
SVG(traces_figure(traces_of(evidence), events_of(evidence)))

# %% [markdown]
# ## Effect of each level, everything else being equal

# %%
display(SVG(effects_figure(evidence.contrasts, common_horizon(times))))
evidence.contrasts

# %% [markdown]
# ## Suspicions and recommendations
#
# Each is decided by a rule that was written before the runs.

# %%
evidence.hypotheses.drop(columns=["cells", "rule"]).set_index(["name", "claim", "verdict", "prediction"])

# %% [markdown]
# ## Limitations

# %%
print("\n".join(f"- {line}" for line in evidence.limits))
