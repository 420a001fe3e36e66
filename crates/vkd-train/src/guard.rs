//! What ends a training: numbers that are not finite, with the place and what is left.

use crate::checkpoints::Checkpoints;
use crate::ranks::is_of_another_rank;
use crate::state::State;
use candle_core::{DType, Error, Result, Tensor};
use std::fmt::Display;
use vkd_norm::flags;
use vkd_tasks::{StepOutput, Term};

/// Where a training stands, for messages.
pub(crate) struct Guard<'a> {
    pub(crate) arm: &'a str,
    pub(crate) checkpoints: &'a Checkpoints,
    /// Step of the newest checkpoint.
    pub(crate) last: Option<u64>,
}

impl Guard<'_> {
    /// The error `what` at `step`, with what is left.
    pub(crate) fn fault(&self, step: u64, what: impl Display) -> Error {
        let left = match self.last {
            Some(last) => format!(
                "{} holds the state after step {last}",
                self.checkpoints.path(last).display()
            ),
            None => "no checkpoint had been written yet".to_owned(),
        };
        Error::Msg(format!("{}: step {step}: {what}; {left}", self.arm))
    }

    /// Adds the place to an error.
    pub(crate) fn at<T>(&self, step: u64, result: Result<T>) -> Result<T> {
        // What another rank has said it has placed.
        let placed = |e: &Error| is_of_another_rank(&crate::plain(e));
        result.map_err(|e| if placed(&e) { e } else { self.fault(step, crate::plain(&e)) })
    }

    /// The numbers of a step's outputs, and the projectors' residual where it is not known yet: copied from their device together.
    ///
    /// # Errors
    /// What a check on the device found, and the first number that is not finite: residual, terms by name, sums.
    pub(crate) fn numbers(
        &self,
        residual: Option<&Tensor>,
        outputs: &[Detached],
        step: u64,
    ) -> Result<Numbers> {
        let mut tensors: Vec<Tensor> = residual.into_iter().cloned().collect();
        for output in outputs {
            tensors.extend(output.terms.iter().map(|t| t.value.clone()));
            tensors.push(output.loss.clone());
        }
        let mut values = self.at(step, read(&tensors))?.into_iter();
        let mut next = || values.next().unwrap_or(f64::NAN);
        let residual = residual.map(|_| next());
        if let Some(r) = residual.filter(|r| !r.is_finite()) {
            return Err(self.fault(step, format!("expected a finite max|WᵀW−I|, got {r}")));
        }
        let mut all = Numbers { residual, outputs: Vec::new() };
        for output in outputs {
            let mut terms = Vec::new();
            for Term { name, weight, value } in &output.terms {
                let number = next();
                // The weight can take a finite term out of its type's range.
                if !((number * weight).abs() <= largest(value.dtype())) {
                    let what = format!(
                        "expected a finite loss, got {weight} · {number} in the term {name}"
                    );
                    return Err(self.fault(step, what));
                }
                terms.push((name.clone(), number));
            }
            let loss = next();
            if !loss.is_finite() {
                let what = format!("expected a finite loss, got the sum {loss} of finite terms");
                return Err(self.fault(step, what));
            }
            all.outputs.push((loss, terms));
        }
        Ok(all)
    }

    /// A finite loss says nothing of the update that followed it.
    pub(crate) fn variables(&self, state: &State, step: u64) -> Result<()> {
        if let Some(name) = state.broken()? {
            return Err(
                self.fault(step, format!("expected finite variables, got others in {name}"))
            );
        }
        Ok(())
    }
}

/// What a step found, off the tape.
pub(crate) struct Detached {
    loss: Tensor,
    terms: Vec<Term>,
}

impl Detached {
    pub(crate) fn of(output: &StepOutput) -> Self {
        let off = |t: &Term| Term { value: t.value.detach(), ..t.clone() };
        Self { loss: output.loss.detach(), terms: output.terms.iter().map(off).collect() }
    }
}

/// The numbers of steps' outputs, on the host.
pub(crate) struct Numbers {
    pub(crate) residual: Option<f64>,
    /// Loss, and terms by name before weighting, of each.
    pub(crate) outputs: Vec<(f64, Vec<(String, f64)>)>,
}

/// The largest finite number of a type.
fn largest(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 65504.,
        DType::F32 | DType::BF16 => f64::from(f32::MAX),
        _ => f64::MAX,
    }
}

/// Numbers of rank 0 on the host: one copy for all that are on one device, in which what its ops found wrong travels too.
fn read(numbers: &[Tensor]) -> Result<Vec<f64>> {
    let mut values = vec![f64::NAN; numbers.len()];
    let mut left: Vec<usize> = (0..numbers.len()).collect();
    while let Some(&first) = left.first() {
        let device = numbers[first].device().clone();
        let (here, others): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|&i| numbers[i].device().same_device(&device));
        let mut parts =
            here.iter().map(|&i| numbers[i].to_dtype(DType::F64)).collect::<Result<Vec<_>>>()?;
        let word = flags::word(&device)?;
        parts.extend(word.clone());
        let mut copied = Tensor::stack(&parts, 0)?.to_vec1::<f64>()?;
        if let (Some(_), Some(word)) = (word, copied.pop_if(|_| parts.len() > here.len())) {
            flags::verdict(&device, word)?;
        }
        here.iter().zip(copied).for_each(|(&i, value)| values[i] = value);
        left = others;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn numbers_come_in_their_order_whatever_their_type() -> Result<()> {
        let cpu = &Device::Cpu;
        let all =
            [Tensor::new(1.5f32, cpu)?, Tensor::new(-2f64, cpu)?, Tensor::new(f64::NAN, cpu)?];
        let values = read(&all)?;
        assert_eq!(values[..2], [1.5, -2.]);
        assert!(values[2].is_nan() && read(&[])?.is_empty());
        Ok(())
    }
}
