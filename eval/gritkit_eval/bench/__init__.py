"""Benchmarks that run gritkit and its peers side by side.

``harness`` contestants in processes of their own, interleaved rounds, medians and ratios; ``report`` the Markdown and
where it goes; one module per benchmark; ``workers`` what runs inside a contestant's process. Nothing here is imported
by the library.
"""
