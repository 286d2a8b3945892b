"""`ExportBenchCallback`: arguments, preflight, pipeline, record."""
