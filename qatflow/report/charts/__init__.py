"""The pictures, laid out: each module turns what a result holds (`report.info`) into a value that can be tested.

A new picture is a function here and a macro in `templates/charts.html.j2`, which draws it as SVG on the page: that is a
hundredth of the bytes of Plotly's, follows the reader's dark mode and needs no script. `ladder` draws candidates and
runs against the gate, `trials` the training, both on axes of `axis`. `study` has the plots that Optuna draws by itself,
with Plotly; they are on a page of their own (`study_page`).
"""
