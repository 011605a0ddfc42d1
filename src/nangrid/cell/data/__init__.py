"""Which samples is a cell trained on?"""
