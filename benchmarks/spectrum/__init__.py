"""How right and how fast predicted Jacobian spectra are, beside Monte-Carlo and the recipe that JPmHC prints."""
