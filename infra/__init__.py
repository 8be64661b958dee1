"""The outside world: buckets, Lance, the ledger, Ray, MLflow. Knows no stage."""
