"""nangrid: what made a fine-tuning run go NaN, where the first non-finite number arose, what cures it."""
