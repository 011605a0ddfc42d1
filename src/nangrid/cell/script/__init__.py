"""How does a cell run a user's own training script?"""
