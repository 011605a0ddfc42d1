"""Okabe and Ito's colours, which are safe for colour-blind readers."""

BLUE = "#0072B2"
VERMILION = "#D55E00"
ORANGE = "#E69F00"
PURPLE = "#CC79A7"
GREEN = "#009E73"
SKY = "#56B4E9"
