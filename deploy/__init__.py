"""Scripts to export, measure, report and sweep; what only they share is imported as ``deploy.X``."""
