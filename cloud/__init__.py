"""Google Cloud: the resources of a project, checks before a launch, Dataflow jobs."""
