"""Training on many machines, on paper: what fits, how fast it is, what it costs.

`hardware` knows accelerators and clusters, `shapes` transformers; `layouts` names the ways to divide a model;
`memory` and `time` say what each costs, `search` finds the best, `published` checks all that against runs
that were published; `serving` and `launch` say what comes after.
"""
