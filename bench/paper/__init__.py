"""The paper's experiments, repeated, beside rivals that it did not have: `python -m fastload.bench paper`.

scale → workplace (state, data, subsets) → training or timed_training → one file for each experiment → report, plots.
"""
