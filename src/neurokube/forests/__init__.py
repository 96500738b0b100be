"""Forests: annotated fragment graphs in, a bundle out that tells which edges are boundaries.

They stand above workflows, whose graphs they learn from; `networks.forest` is what stages apply.
"""
