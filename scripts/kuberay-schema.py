"""Makes tests/kuberay-rayjob.schema.json from KubeRay's resource definition, kept to what our RayJob uses.

    python scripts/kuberay-schema.py ray.io_rayjobs.yaml v1.7.0

The first is helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml of KubeRay at the tag that the second names. Every
name that an object may have stays, so that one that it may not have is found out; what our file does not use is kept by
its type only. To be run again when the file uses more, or for another KubeRay.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
FILE = ROOT / "examples/clusters/kuberay-rayjob.yaml"
SCHEMA = ROOT / "tests/kuberay-rayjob.schema.json"
KEPT = ("type", "enum", "pattern", "required", "anyOf", "minimum", "maximum", "minLength", "maxLength")


def narrowed(schema: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """A JSON schema that says of `values` what the given one says. values: all that stand in that place."""
    kept = {key: schema[key] for key in KEPT if key in schema}
    objects = [value for value in values if isinstance(value, dict)]
    items = [item for value in values if isinstance(value, list) for item in value]
    if "properties" in schema:
        kept["additionalProperties"] = False
        kept["properties"] = {
            name: narrowed(inner, [value[name] for value in objects if name in value])
            if any(name in value for value in objects)
            else {key: inner[key] for key in ("type",) if key in inner}
            for name, inner in schema["properties"].items()
        }
    elif isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = narrowed(
            schema["additionalProperties"], [inner for value in objects for inner in value.values()]
        )
    if "items" in schema:
        kept["items"] = narrowed(schema["items"], items)
    return kept


def main(definition: str, tag: str) -> None:
    versions = yaml.safe_load(Path(definition).read_text())["spec"]["versions"]
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    (job,) = (d for d in yaml.safe_load_all(FILE.read_text()) if d["kind"] == "RayJob")
    origin = (
        f"Derived by scripts/kuberay-schema.py from helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml of KubeRay "
        f"{tag} (github.com/ray-project/kuberay), Copyright KubeRay authors, Apache License 2.0"
    )
    found = {"$comment": origin, **narrowed(schema, [job])}
    found["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, which the definition leaves open
    SCHEMA.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
