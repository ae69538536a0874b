"""Hyperspectral data: products, tiles and labelled scenes.

Knows nothing of the model. Import the module that is needed (`from datasets_loading.sensors import ...`): importing
the package alone loads nothing, so that reading a product does not pay for `datasets`, nor simulating one for
`rasterio`.
"""
