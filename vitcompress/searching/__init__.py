"""The whole chain under a goal: the choices of its stages that cost least within the gates."""
