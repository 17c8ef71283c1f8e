#!/usr/bin/env bash
# The inner loop: format, clippy and unit tests of the crates that differ from the last commit (or,
# in a clean tree, of those that the last commit changed). Under a minute with warm caches.
set -euo pipefail
cd "$(dirname "$0")/.."

changed=$({ git diff --name-only HEAD; git ls-files --others --exclude-standard; } | sort -u)
# A shallow clone may lack the commit before the last; then all files count as changed.
[ -n "$changed" ] || changed=$(git diff --name-only HEAD~1 HEAD 2>/dev/null || git ls-files)

packages=()
add() { case " ${packages[*]-} " in *" $1 "*) ;; *) packages+=("$1") ;; esac; }
while read -r file; do
  case $file in
    base/*) add dw-base ;;
    data-tools/*) add dw-shards ;;
    launcher/*|slurm/*) add dw-launch ;;
    metric/*) add dw-metric ;;
    torch/*) add dw-torch ;;
    weights/*) add dw-weights ;;
    src/*|tests/*|benches/*|configs/*|templates/*|build.rs|Cargo.toml|Cargo.lock) add dw ;;
  esac
done <<<"$changed"

cargo fmt --all --check
if [ ${#packages[@]} -eq 0 ]; then
  echo "check: format ok; no crate has changed"
  exit 0
fi
echo "check: ${packages[*]}"
select=()
for package in "${packages[@]}"; do select+=(-p "$package"); done
cargo clippy --locked --release "${select[@]}" --all-targets -- -D warnings
cargo nextest run --locked --release "${select[@]}" --lib --no-tests=pass
echo "check: ok"
