"""Whether the law of the loss carries over to what a model is used for.

`python -m experiments.downstream` runs it; `__main__.py` says what it does.
"""
