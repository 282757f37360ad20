"""Workers that are processes of a Ray cluster: scoring actors, Tune trials, tasks that gather statistics."""
