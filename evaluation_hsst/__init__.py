"""What HSST is worth: baselines, fine-tuning, comparisons, and speed.

Stands on `modeling_hsst` and `datasets_loading`; neither knows of it.
"""
