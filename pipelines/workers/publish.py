"""A worker's artifact on its way to the store, by way of the driver's disk while the store is away."""

from pathlib import Path

from prunefront.pipelines.artifacts.publish import Artifact, publish
from prunefront.pipelines.stores.memory import MemoryStore
from prunefront.pipelines.stores.spool import PATIENCE, Refuge, retry_while_away, send_to_refuge
from prunefront.pipelines.stores.store import ArtifactStore, StoreAway


def published(store: ArtifactStore, folder: Path, name: str, refuge: Refuge | None) -> Artifact:
    """Publishes as `artifacts.publish` does, by a worker: while the store is away, the artifact goes to the refuge.

    Without one, tries again for `PATIENCE` seconds. Raises StoreAway where neither helped, else as `publish`.
    """
    try:
        return publish(store, folder, name)
    except StoreAway as away:
        if refuge is None:
            return retry_while_away(PATIENCE)(publish, store, folder, name)
        kept = MemoryStore(store.uri)
        artifact = publish(kept, folder, name)
        send_to_refuge(kept.objects, refuge, away)
        return artifact
