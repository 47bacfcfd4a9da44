"""Ray: the connection to it, tasks spread over the cluster, and progress lines."""
