"""What do a grid's records say, taken together?"""
