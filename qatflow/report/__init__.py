"""The accuracy report: tables, pictures and one HTML page, all made from a `RunResult` and nothing else.

`write` makes the files of one run folder, `write_sweep` the summary over several; both only read what the runs left,
so that `python -m qatflow.report RUN_DIR` rebuilds a report years later, without torch and without the model.
"""
