"""How are the cells of a grid run: which of them, one process each, side by side, and watched?"""
