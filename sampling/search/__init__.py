"""Search: spend more network calls on a request, keep what a verifier likes best.

Each search is a small frozen dataclass that is called with a run (start noise -> sample), a verifier and a source of
noise; it says beforehand what it will cost (``cost``) and fits itself into a budget of network calls (``within``).
"""
