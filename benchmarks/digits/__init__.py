"""Classification of scikit-learn's handwritten digits."""
