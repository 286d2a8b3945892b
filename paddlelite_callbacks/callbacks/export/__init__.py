"""`ExportBenchCallback`: arguments, run, record, and the pipeline of one export."""
