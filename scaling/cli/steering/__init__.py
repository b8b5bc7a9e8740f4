"""A sweep that steers itself: what to train is decided from what was trained.

`auto.py` holds `scaling.auto`, `settings.py` what it is asked, `steer.py` its loop,
`rates.py` the search for the learning rate, `rounds.py` the choice of the next runs,
`journal.py` the record of decisions, `outcome.py` the law, the prediction and the report
that come out, and `simulated.py` runs that are drawn from a law. They are part of the
command line's package, because it alone needs both `scaling` and `analysis`.
"""
