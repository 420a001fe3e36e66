#!/usr/bin/env bash
# Chooses the arms' weights for recipes/digits.toml by mean validation accuracy over three seeds that no reported run
# uses: first the weight of the logits, then, with it, that of the features, on the same values for both projectors.
# Writes docs/results/tuning-digits.md. Run from the top of the repository, after `cargo build --release`; takes about
# five minutes on two cores.
set -euo pipefail
vkd=${VKD:-target/release/vkd}
work=$(mktemp -d)
page=docs/results/tuning-digits.md
seeds="100 101 102"

run() { # seed, folder, arms, then overrides
  local seed=$1 out=$2 arms=$3
  shift 3
  "$vkd" distill recipes/digits.toml --seed "$seed" --out "$out" --set "arms=$arms" "$@" >/dev/null 2>&1
}
validation() { # report, arm
  grep -A14 "\"name\": \"$2\"" "$1" | grep -m1 validation_accuracy | tr -dc '0-9.'
}

for seed in $seeds; do
  run "$seed" "$work/teacher$seed" '["none"]' --set training.steps=1
done
{
  echo '# Weights of recipes/digits.toml'
  echo
  echo 'Validation accuracy (200 images), by `docs/results/tune-digits.sh`. Test images play no part in it.'
  echo
  echo '| arm | varied | value | seed 100 | seed 101 | seed 102 | mean |'
  echo '|---|---|---|---|---|---|---|'
} > "$page"
row() { # arm, key, value, report name
  local values=() sum
  for seed in $seeds; do values+=("$(validation "$work/$4-$seed/report.json" "$1")"); done
  sum=$(IFS=+; echo "(${values[*]})/3" | bc -l)
  printf '| %s | %s | %s | %s | %s | %s | %.4f |\n' "$1" "$2" "$3" "${values[@]}" "$sum" >> "$page"
}
teacher() { echo "teacher.checkpoint=$work/teacher$1/teacher.safetensors"; }

# First the weight of the logits, on their own.
best=0
for logits in 1 2 4 8 16; do
  for seed in $seeds; do
    run "$seed" "$work/logits$logits-$seed" '["logits"]' --set "$(teacher "$seed")" --set "arm.logits.logits=$logits"
  done
  row logits logits "$logits" "logits$logits"
  mean=$(tail -n 1 "$page" | awk -F'|' '{print $8 + 0}')
  if (( $(echo "$mean > $best" | bc -l) )); then best=$mean chosen=$logits; fi
done
# Then, with that weight, the weight of the features, the same values for both projectors.
for features in 2 10 50 250; do
  for seed in $seeds; do
    run "$seed" "$work/features$features-$seed" '["linear","vkd"]' --set "$(teacher "$seed")" \
      --set "arm.linear.logits=$chosen" --set "arm.vkd.logits=$chosen" \
      --set "arm.linear.features=$features" --set "arm.vkd.features=$features"
  done
  row linear "features, logits $chosen" "$features" "features$features"
  row vkd "features, logits $chosen" "$features" "features$features"
done
rm -r "$work"
