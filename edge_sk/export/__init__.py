"""From a trained model to files for phones, and the proof that they compute the same."""
