"""Numbers -> pictures and words: figures, findings, the pages, and the widgets of the notebooks."""
