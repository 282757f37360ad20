"""Names of a study's files, in its folder and at the root of its artifact store. They are written here alone."""

from pathlib import Path

STUDIES = Path("studies")
"""Folder of the studies whose file names no other."""

JOURNAL = "journal.jsonl"
"""Journal: every event, one JSON object a line."""

SUPERSEDED_JOURNAL = "journal-superseded.jsonl"
"""Journal of a run that another machine superseded."""

STUDY = "study.json"
"""Configuration that the study was started with, without its secrets."""

LOCK = "lock"
"""Lock file, which the one process that runs the study holds."""

RUN = "run.json"
"""Latest run that was begun in the folder."""

OWNER = "owner.json"
"""Study that a store belongs to; the folder has a copy."""

PREPARED = "prepared"
"""Folder of data made once per study: dense weights, channel graph, scores."""

WEIGHTS = "weights"
"""Folder of weights that candidates of the first stage inherit."""

CHECKPOINTS = "checkpoints"
"""Folder of checkpoints of trainings under way: one folder a stage, one file a network."""

SPOOL = "spool"
"""Folder of objects that wait for a store that is away."""

TUNE = "tune"
"""Folder that Ray Tune writes to."""

ARTIFACTS = "artifacts"
"""Folder of published networks, where the study names no store."""

FRONT = "front.json"
"""The front, one object a network; also at the root of the store."""

REPORT = "report.html"
"""The page that people decide with, during a search and after it."""

EARLIER_PAGES = ("front.html", "partial-front.html", "front.png")
"""Pages and a picture that earlier versions wrote."""

PARTIAL_FRONT = "partial-front.json"
"""Front of a search that was cut short."""

BOUNDS = "bounds.json"
"""Comparison of the front's networks with the study's bounds."""

MISTAKES = "mistakes.json"
"""Validation samples that networks of the front newly get wrong."""

TIMING = "timing.json"
"""Time that each part of a search took."""

LATENCY_TABLE = "latency.json"
"""Latency table that `prunefront latency-table` measures."""

CORRECTED_TABLE = "latency-corrected.json"
"""Latency table, with the networks that the study timed after training."""

EVALUATIONS = "evaluations.json"
"""Every evaluation of the study, at the root of the store, for studies that start from it."""

STATE = "state"
"""Folder of the study's state in the store, for another machine to go on from."""

DENSE_NETWORKS = ("dense", "dense-finetuned")
"""Names of the networks that candidates are compared with."""
