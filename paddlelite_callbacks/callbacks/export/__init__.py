"""`ExportBenchCallback`: arguments, preflight, export pipeline, run folder and record."""
