#!/usr/bin/env bash
# Chooses the arms' weights for recipes/digits.toml by mean validation accuracy over three seeds that no reported run
# uses: first the weight of the logits (six values), then that of the features for two of them (eight cells a projector).
# Writes docs/results/tuning-digits.md. Run from the top of the repository, after `cargo build --release`; takes about
# ten minutes on two cores.
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
  echo '| arm | weights | seed 100 | seed 101 | seed 102 | mean |'
  echo '|---|---|---|---|---|---|'
} > "$page"
row() { # arm, weights, report name
  local values=() sum
  for seed in $seeds; do values+=("$(validation "$work/$3-$seed/report.json" "$1")"); done
  sum=$(IFS=+; echo "(${values[*]})/3" | bc -l)
  printf '| %s | %s | %s | %s | %s | %.4f |\n' "$1" "$2" "${values[@]}" "$sum" >> "$page"
}
teacher() { echo "teacher.checkpoint=$work/teacher$1/teacher.safetensors"; }

# First the weight of the logits, on their own.
best=0
for logits in 0.5 1 2 4 8 16; do
  for seed in $seeds; do
    run "$seed" "$work/logits$logits-$seed" '["logits"]' --set "$(teacher "$seed")" --set "arm.logits.logits=$logits"
  done
  row logits "logits $logits" "logits$logits"
  mean=$(tail -n 1 "$page" | awk -F'|' '{print $7 + 0}')
  if (( $(echo "$mean > $best" | bc -l) )); then best=$mean chosen=$logits; fi
done
# Then the weight of the features, with the published logits weight of 1 and with the chosen one, the same values for both
# projectors.
for logits in 1 "$chosen"; do
  for features in 2 10 50 250; do
    for seed in $seeds; do
      run "$seed" "$work/$logits-$features-$seed" '["linear","vkd"]' --set "$(teacher "$seed")" \
        --set "arm.linear.logits=$logits" --set "arm.vkd.logits=$logits" \
        --set "arm.linear.features=$features" --set "arm.vkd.features=$features"
    done
    row linear "logits $logits, features $features" "$logits-$features"
    row vkd "logits $logits, features $features" "$logits-$features"
  done
done
rm -r "$work"
