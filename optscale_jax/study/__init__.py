"""Comparing policies over pools: outcomes, tuning, intervals, comparison, summaries.

Builds on `replay`, which makes the outcomes; `report` draws what comes out, and the commands of
`eval/` are thin over both.
"""
