"""How is the model of a cell loaded, extended and adapted?"""
