#!/usr/bin/env bash
# hydra-core 1.3.4, tab completion: options that `--config-dir` adds are not offered, although the same line runs with
# them. Expected: the completion query, which is given the whole line in COMP_LINE, offers what that line could be
# completed to.
#
# Seen: with the flag on the line, Hydra's query lists the application's own options of a group only; with the folder on
# the search path of the primary config, it lists both. An application whose users bring their own options has to read
# the flag out of COMP_LINE itself.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet hydra-core==1.3.4 omegaconf==2.3.0
mkdir -p "$work/conf/db" "$work/mine/db"
cat >"$work/app.py" <<'PY'
import hydra


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg):
    print("db is", cfg.db.name)


main()
PY
echo "defaults: [db: shipped]" >"$work/conf/config.yaml"
echo "name: shipped" >"$work/conf/db/shipped.yaml"
echo "name: brought" >"$work/mine/db/brought.yaml"
cd "$work"
ran=$("$work/venv/bin/python" app.py --config-dir mine db=brought)
offered=$(COMP_LINE="app.py --config-dir mine db=" "$work/venv/bin/python" app.py -sc query=bash)
printf 'defaults: [db: shipped]\nhydra:\n  searchpath: [file://%s/mine]\n' "$work" >conf/config.yaml
known=$(COMP_LINE="app.py db=" "$work/venv/bin/python" app.py -sc query=bash)
echo "the line runs: $ran"
echo "completion with --config-dir offers: $(echo $offered)"
echo "with the folder on the search path:  $(echo $known)"
[ "$ran" = "db is brought" ]
[ "$(echo $offered)" = "db=shipped" ]
[ "$(echo $known)" = "db=brought db=shipped" ]
