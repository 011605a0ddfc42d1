"""What does the failing operation do alone, or computed in another way?"""
