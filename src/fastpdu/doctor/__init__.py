"""Where the time goes between us and a peer.

`measure` makes the figures, `judge` draws the conclusions from them and from nothing else, `report` says it.
docs/doctor.md explains how.
"""
