"""Pictures at remote addresses, where they are allowed."""

from web.remote.fetch import RemotePictures, RemoteRules

__all__ = ["RemotePictures", "RemoteRules"]
