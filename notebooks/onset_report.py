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
# # Onset report
#
# When the runs of one grid went non-finite, and why. `python -m src.report GRID_DIR` executes this notebook and writes
# it next to the page. To continue from here, open it in Jupyter: `jupytext --to notebook notebooks/onset_report.py`.

# %% tags=["parameters"]
GRID = "outputs/default"
HYPOTHESES = "conf/hypotheses"
REFERENCE: list[str] = []

# %%
import textwrap
from pathlib import Path

import pandas as pd
from IPython.display import SVG, display

from nangrid.analysis.evidence import gather
from nangrid.analysis.survival import common_horizon
from nangrid.records.grid import GridDirectory
from nangrid.reporting.figures import effects_figure, survival_figure, traces_figure
from nangrid.reporting.page import with_headings
from nangrid.reporting.report import events_of, traces_of

pd.set_option("display.max_rows", 200)
evidence = gather(GridDirectory.at(GRID), Path(HYPOTHESES), REFERENCE)
horizon = common_horizon(evidence.times)

# %% [markdown]
# ## Answer

# %%
print(textwrap.fill(" ".join(evidence.sentences), 100))

# %% [markdown]
# ## The verdict with every proof

# %%
print(*evidence.verdict, sep="\n")

# %% [markdown]
# ## Onsets
#
# One row per cell. `censored`: still finite at its horizon.

# %%
evidence.onsets.drop(columns=["error"])

# %% [markdown]
# ## Rates over seeds
#
# With Clopper and Pearson's 95 % intervals, one-sided where none or all of the seeds fail.

# %%
with_headings(evidence.rates)

# %% [markdown]
# ## Survival
#
# Kaplan-Meier per level, pooled over all other factors; ticks mark censored cells.

# %%
if evidence.factors:
    display(SVG(survival_figure(evidence.curves, horizon)))

# %% [markdown]
# ## Effects, everything else being equal

# %%
if evidence.factors:
    display(SVG(effects_figure(evidence.contrasts, horizon)))
    display(with_headings(evidence.contrasts), with_headings(evidence.tests))

# %% [markdown]
# ## Interactions
#
# By how many steps the effect of a level changes when another factor leaves its reference level.

# %%
with_headings(evidence.interactions)

# %% [markdown]
# ## Loss and gradient norm to the onset

# %%
if evidence.histories:
    display(SVG(traces_figure(traces_of(evidence), events_of(evidence))))

# %% [markdown]
# ## Hypotheses

# %%
evidence.hypotheses.drop(columns=["cells", "rule"])

# %% [markdown]
# ## Limitations

# %%
print("\n".join(f"- {line}" for line in evidence.limits))
