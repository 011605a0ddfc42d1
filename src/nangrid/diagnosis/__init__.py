"""Which level changes cause a failure, and which cure it?"""
