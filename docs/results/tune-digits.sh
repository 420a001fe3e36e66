#!/usr/bin/env bash
# Chooses the arms' weights for recipes/digits.toml: four values an arm, three seeds that no reported run uses, by mean
# validation accuracy. Writes docs/results/tuning-digits.md. Run from the top of the repository, after
# `cargo build --release`; takes about five minutes on two cores.
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
for i in 0 1 2 3; do
  logits=(0.5 1 2 4)
  features=(2 10 50 250)
  for seed in $seeds; do
    run "$seed" "$work/$i-$seed" '["logits","linear","vkd"]' --set "teacher.checkpoint=$work/teacher$seed/teacher.safetensors" \
      --set "arm.logits.logits=${logits[$i]}" --set "arm.linear.features=${features[$i]}" --set "arm.vkd.features=${features[$i]}"
  done
  row logits logits "${logits[$i]}" "$i"
  row linear features "${features[$i]}" "$i"
  row vkd features "${features[$i]}" "$i"
done
rm -r "$work"
