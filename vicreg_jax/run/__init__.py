"""What every long job has, whoever trains: a workdir, checkpoints, the loop."""
