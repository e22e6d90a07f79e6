"""Evidence for rolling pools and for selections, with rivals tuned alike: `python -m fastload.bench evidence`.

scale, sets, arms → training of a cell (an arm in a setting) → runner → statistics, hypotheses → report, plots.
"""
