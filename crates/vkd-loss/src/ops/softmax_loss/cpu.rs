//! Row kernels of the losses on logits, all arithmetic in f64.
//!
//! Every kind is `sum over classes of t * (log t - log softmax(x / T))`, with the first logarithm for the divergence
//! only; every gradient is `(softmax * sum(t) - t) / T`.

use super::Target;
use crate::dense::Real;
use candle_core::{Result, bail};
use vkd_norm::{log_sum_exp, softmax_row as softmax};

/// How far from one the probabilities of a row may sum.
pub(super) const SUM_TOLERANCE: f64 = 1e-4;

/// The second argument: class indices, or one value per class.
#[derive(Clone, Copy)]
pub(super) enum Values<'a, T> {
    Labels(&'a [u32]),
    Dense(&'a [T]),
}

/// The target distribution of one row, and its logarithm where the loss needs it (else zeros).
struct Row {
    target: Vec<f64>,
    log_target: Vec<f64>,
}

impl Row {
    fn new(classes: usize) -> Self {
        Self { target: vec![0.; classes], log_target: vec![0.; classes] }
    }

    fn fill<T: Real>(
        &mut self,
        (op, kind): (&str, Target),
        values: Values<'_, T>,
        row: usize,
    ) -> Result<()> {
        let classes = self.target.len();
        match (kind, values) {
            (Target::Labels { smoothing }, Values::Labels(labels)) => {
                let label = labels[row] as usize;
                if label >= classes {
                    bail!("{op}: expected class < {classes}, got class {label} in row {row}")
                }
                self.target.fill(smoothing / classes as f64);
                self.target[label] += 1. - smoothing;
            }
            (Target::Logits { temperature }, Values::Dense(logits)) => {
                let logits = &logits[row * classes..][..classes];
                let norm = softmax(logits, temperature, &mut self.target);
                for (log_t, x) in self.log_target.iter_mut().zip(logits) {
                    *log_t = x.wide() / temperature - norm;
                }
            }
            (Target::Probabilities, Values::Dense(probabilities)) => {
                let row_values = &probabilities[row * classes..][..classes];
                for (k, (t, p)) in self.target.iter_mut().zip(row_values).enumerate() {
                    *t = p.wide();
                    if t.is_nan() || *t < 0. {
                        bail!("{op}: expected probabilities >= 0, got {t} in row {row}, class {k}")
                    }
                }
                let sum: f64 = self.target.iter().sum();
                if (sum - 1.).abs() > SUM_TOLERANCE {
                    bail!(
                        "{op}: expected probabilities that sum to 1 within {SUM_TOLERANCE:e}, got {sum} in row {row} \
                         (off by {:e})",
                        sum - 1.
                    )
                }
            }
            _ => bail!("{op}: expected U32 labels or one value per class, got the other"),
        }
        Ok(())
    }
}

/// The sum over rows divided by `divisor`, or every row's loss where there is none.
pub(super) fn forward<T: Real>(
    (op, kind): (&str, Target),
    logits: &[T],
    values: Values<'_, T>,
    classes: usize,
    divisor: Option<f64>,
) -> Result<Vec<T>> {
    let temperature = kind.temperature();
    let mut row = Row::new(classes);
    let mut rows = Vec::with_capacity(if divisor.is_some() { 0 } else { logits.len() / classes });
    let mut total = 0f64;
    for (i, xs) in logits.chunks_exact(classes).enumerate() {
        row.fill((op, kind), values, i)?;
        let norm = log_sum_exp(xs, temperature);
        let mut loss = 0f64;
        for ((&t, &log_t), x) in row.target.iter().zip(&row.log_target).zip(xs) {
            // A class without weight counts nothing, even where its logit is negative infinity.
            if t != 0. {
                loss += t * (log_t - (x.wide() / temperature - norm));
            }
        }
        // None of the losses is negative: what is below zero is rounding. NaN passes.
        let loss = if loss < 0. { 0. } else { loss };
        match divisor {
            Some(_) => total += loss,
            None => rows.push(T::narrow(loss * kind.factor())),
        }
    }
    if let Some(divisor) = divisor {
        rows.push(T::narrow(total * kind.factor() / divisor));
    }
    Ok(rows)
}

/// Gradient of the logits; `grad` is that of the one loss, or of every row.
pub(super) fn backward<T: Real>(
    (op, kind): (&str, Target),
    logits: &[T],
    values: Values<'_, T>,
    classes: usize,
    grad: &[T],
    divisor: Option<f64>,
) -> Result<Vec<T>> {
    let temperature = kind.temperature();
    let scale = kind.factor() / (temperature * divisor.unwrap_or(1.));
    let mut row = Row::new(classes);
    let mut student = vec![0f64; classes];
    let mut ds = Vec::with_capacity(logits.len());
    for (i, xs) in logits.chunks_exact(classes).enumerate() {
        row.fill((op, kind), values, i)?;
        softmax(xs, temperature, &mut student);
        let sum: f64 = row.target.iter().sum();
        let at = if divisor.is_some() { 0 } else { i };
        let share = scale * grad.get(at).map_or(0., |g| g.wide());
        let pairs = student.iter().zip(&row.target);
        ds.extend(pairs.map(|(p, t)| T::narrow(share * (p * sum - t))));
    }
    Ok(ds)
}
