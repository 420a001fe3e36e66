#!/usr/bin/env bash
# Chooses the weights of arms by mean validation accuracy, six cells an arm, on seeds that no reported run uses. Test images
# play no part. Writes a table of all cells to PAGE. Run from the top of the repository, after `cargo build --release`.
#
#   docs/results/tune-classification.sh PAGE RECIPE "SEEDS" "ARMS" "LOGITS" "FEATURES" [--set KEY=VALUE ..]
#
# Each cell is a weight of LOGITS with one of FEATURES, the same for every arm of ARMS; FEATURES "-" leaves the features as the
# recipe has them. The teacher of a seed is trained once. The calls behind the committed tables stand at their end.
set -euo pipefail
vkd=${VKD:-target/release/vkd}
call="$(printf '%q ' "$0" "$@")"
page=$1 recipe=$2 seeds=$3 arms=$4 logits=$5 features=$6
shift 6
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
read -r first _ <<<"$arms"
list="[\"${arms// /\",\"}\"]"

validation() { # report, arm
  grep -A20 "\"name\": \"$2\"" "$1" | grep -m1 validation_accuracy | tr -dc '0-9.'
}

for seed in $seeds; do
  "$vkd" distill "$recipe" --seed "$seed" --out "$work/teacher$seed" "$@" \
    --set "arms=[\"$first\"]" --set training.steps=1 >/dev/null
done
{
  printf '| arm | logits | features |'; printf ' seed %s |' $seeds; echo ' mean |'
  printf '| --- | ---: | ---: |'; for seed in $seeds; do printf ' ---: |'; done; echo ' ---: |'
} > "$work/page"
for l in $logits; do
  for f in $features; do
    weights=()
    for arm in $arms; do
      weights+=(--set "arm.$arm.logits=$l")
      if [ "$f" != - ]; then weights+=(--set "arm.$arm.features=$f"); fi
    done
    for seed in $seeds; do
      "$vkd" distill "$recipe" --seed "$seed" --out "$work/$l-$f-$seed" "$@" --set "arms=$list" \
        --set "teacher.checkpoint=$work/teacher$seed/teacher.safetensors" "${weights[@]}" >/dev/null
    done
    for arm in $arms; do
      values=()
      for seed in $seeds; do values+=("$(validation "$work/$l-$f-$seed/report.json" "$arm")"); done
      mean=$(IFS=+; echo "(${values[*]})/${#values[@]}" | bc -l)
      { printf '| %s | %s | %s |' "$arm" "$l" "$f"; printf ' %s |' "${values[@]}"; printf ' %.4f |\n' "$mean"; } >> "$work/page"
    done
  done
done
# By arm, as a reader looks for them.
{
  head -n 2 "$work/page"
  tail -n +3 "$work/page" | sort -s -t'|' -k2,2
  echo
  echo "By \`${call% }\`."
} > "$page"
