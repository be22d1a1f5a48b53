"""The HTTP server: a job store, a queue in front of processes that paint, and one module of routes per dialect.

The web process never imports torch. `app.create` builds the application, `kandinsky22 serve` runs it.
"""
