"""Okabe and Ito's colours, which are safe for colour-blind readers, and what they stand for."""

BLUE = "#0072B2"
VERMILION = "#D55E00"
ORANGE = "#E69F00"
PURPLE = "#CC79A7"
GREEN = "#009E73"
SKY = "#56B4E9"

FINITE, NONFINITE, UNTRAINED, ERROR = BLUE, VERMILION, ORANGE, f"bold {PURPLE}"
"""How a cell ended, in a terminal. No meaning rests on colour alone: the words say the same."""
