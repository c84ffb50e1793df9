"""The pages are tests; the configuration, the examples and what a build writes are not."""

collect_ignore_glob = ["*.py", "_build/*", "examples/*", "gallery/*", "generated/*"]
