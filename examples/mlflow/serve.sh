#!/usr/bin/env bash
# An MLflow server that asks for a name and a password, on this machine only:
#
#   export MLFLOW_AUTH_ADMIN_PASSWORD=…             # 12 characters or more; needed at the first start only
#   examples/mlflow/serve.sh /srv/mlflow [PORT]     # 5000
#
# It listens on 127.0.0.1, for names and passwords travel as they are: put a proxy with TLS before it (README.md).
# Records go to FOLDER/records.db, or to MLFLOW_BACKEND_STORE_URI (postgresql://…), files to FOLDER/artifacts.
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-} port=${2:-5000} python=${PYTHON:-python}
[ -n "$folder" ] || fail "name the folder that records and users are kept in: serve.sh FOLDER [PORT]"
"$python" -c "import flask_wtf" 2>/dev/null ||
    fail "$python cannot ask for passwords: pip install 'prunefront[mlflow-auth]'"

umask 077 # users, records and the key of sessions are nobody else's on this machine
mkdir -p "$folder/artifacts"
cd "$folder"
if [ ! -f users.db ] && [ -z "${MLFLOW_AUTH_ADMIN_PASSWORD:-}" ]; then
    fail "set MLFLOW_AUTH_ADMIN_PASSWORD, which the user admin will have"
fi
[ -s session.key ] || "$python" -c "import secrets; print(secrets.token_hex(32))" >session.key

export MLFLOW_AUTH_CONFIG_PATH="$here/basic_auth.ini"
MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat session.key)
export MLFLOW_FLASK_SERVER_SECRET_KEY
# an address may hold a password, so it is not an argument, which everybody on the machine could read
export MLFLOW_BACKEND_STORE_URI="${MLFLOW_BACKEND_STORE_URI:-sqlite:///$PWD/records.db}"
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # eight helper processes that nothing here needs
export MLFLOW_DISABLE_TELEMETRY=true
exec "$python" -m mlflow server --app-name basic-auth --host 127.0.0.1 --port "$port" --workers 2 \
    --artifacts-destination "$PWD/artifacts"
