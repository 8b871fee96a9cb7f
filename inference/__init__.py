"""A finished run as a tool: compare, verify, identify, search, a page in the browser.

In: a run directory and images. Out: distances, verdicts, classes, neighbours. Open
`similarity_model.py` first; `predict.py` and `export.py` are the doors.
"""
