"""The volume: resumable ingests, layouts, record, ready markers, claims.

Only this package renames and fsyncs; ``store.Store`` is where to start.
"""
