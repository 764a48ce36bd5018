"""Model URIs to listings, artifacts to places: NGC, the Hub, DataStore, S3, web servers, a directory.

Each is imported where it is first asked: a pull needs one of them.
"""
