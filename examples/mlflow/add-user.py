"""Makes a user of the MLflow server that serve.sh started, with a password that it prints once:

MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD=… python -W ignore add-user.py http://127.0.0.1:5000 ada
"""

import secrets
import sys

from mlflow.server import get_app_client

uri, name = sys.argv[1:]
password = secrets.token_urlsafe(18)
get_app_client("basic-auth", tracking_uri=uri).create_user(username=name, password=password)
print(f"export MLFLOW_TRACKING_USERNAME={name} MLFLOW_TRACKING_PASSWORD={password}")
