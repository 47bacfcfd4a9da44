"""Ray: sessions, tasks spread over the cluster, lines of progress."""
