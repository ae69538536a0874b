"""Simulated EnMAP scenes, with the labels of what is in them."""
