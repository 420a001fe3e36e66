//! What ends a training: numbers that are not finite, with the place and what is left.

use crate::checkpoints::Checkpoints;
use crate::ranks::is_of_another_rank;
use crate::state::State;
use candle_core::{DType, Error, Result, Tensor};
use std::collections::BTreeMap;
use std::fmt::Display;
use vkd_tasks::{DistillTask, StepOutput};

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

    /// The projectors' residual. A projector whose parameter broke refuses to give a weight.
    pub(crate) fn residual(&self, task: &impl DistillTask, step: u64) -> Result<Option<f64>> {
        match self.at(step, task.residual())? {
            Some(r) if !r.is_finite() => {
                Err(self.fault(step, format!("expected a finite max|WᵀW−I|, got {r}")))
            }
            residual => Ok(residual),
        }
    }

    /// The terms of a step by name, before weighting.
    pub(crate) fn terms(&self, output: &StepOutput, step: u64) -> Result<BTreeMap<String, f64>> {
        let mut values = BTreeMap::new();
        for term in &output.terms {
            let value = scalar(&term.value)?;
            // The weight can take a finite term out of range.
            if !scalar(&(&term.value * term.weight)?)?.is_finite() {
                let (weight, name) = (term.weight, &term.name);
                let what =
                    format!("expected a finite loss, got {weight} · {value} in the term {name}");
                return Err(self.fault(step, what));
            }
            values.insert(term.name.clone(), value);
        }
        let sum = scalar(&output.loss)?;
        if !sum.is_finite() {
            let what = format!("expected a finite loss, got the sum {sum} of finite terms");
            return Err(self.fault(step, what));
        }
        Ok(values)
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

pub(crate) fn scalar(value: &Tensor) -> Result<f64> {
    value.to_dtype(DType::F64)?.to_scalar::<f64>()
}
