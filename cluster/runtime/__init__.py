"""Ray: sessions, tasks spread over the cluster, and progress lines."""
