"""Real request traces through real sessions: `pegaflow replay` and `pegaflow demo`.

source, formats, fitting, guards and reading make a trace of files, and tree keeps it small; content
says what bytes a block holds, ceiling what a cache could reach; engine is one process of a replay,
runner starts them all, report adds up, service is a service to run against.
"""
