"""genmeasure: why, and how well, does this fine-tuned checkpoint generalize?"""
