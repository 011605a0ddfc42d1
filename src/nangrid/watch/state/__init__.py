"""What must be saved so that one training step can be run again exactly?"""
