"""The job folder: what is durable, in which order, and who may write it."""
