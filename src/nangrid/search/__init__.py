"""Which few cells tell what brought an event about, and what cures it?"""
