"""Not NVIDIA's library of this name: nimpull's answer to the one call that the NIM Operator makes of it.

For an image that has no ``download-to-cache`` on PATH the operator runs ``python3 -c "from nimlib import
nimutils; nimutils.download_models()"``. Written from that line alone. In nimpull's image only, never beside
the real one: it would take its place.
"""
