"""Parts of `python -m engine calibrate`: what is measured, how, where it is kept, and how good the fit is."""
