"""What a person is told about a job: progress, summary, status."""
