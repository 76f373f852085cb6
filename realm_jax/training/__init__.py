"""The training job: one loop for every task, its state, optimizer, sharding, checkpoints, snapshots, metrics and throughput."""
