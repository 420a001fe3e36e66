//! What the losses on logits launch on a device.

use super::Target;
use candle_core::{DType, Result};
use vkd_norm::program::{Arg, Program, Size, count, suffix};

/// A loss on `rows` rows of logits.
#[derive(Clone, Copy)]
pub(super) struct Logits {
    pub(super) op: &'static str,
    pub(super) kind: Target,
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) classes: usize,
    /// What the sum over rows is divided by; without it there is no sum.
    pub(super) divisor: Option<f64>,
}

impl Logits {
    /// Kind, smoothing and temperature; values and labels, of which a loss has one.
    fn target(self) -> ([Arg; 3], [Arg; 2]) {
        let (kind, smoothing) = match self.kind {
            Target::Labels { smoothing } => (0, smoothing),
            Target::Probabilities => (1, 0.),
            Target::Logits { .. } => (2, 0.),
        };
        let numbers = [Arg::U32(kind), Arg::F64(smoothing), Arg::F64(self.kind.temperature())];
        match self.kind {
            Target::Labels { .. } => (numbers, [Arg::Null, Arg::Input(1)]),
            _ => (numbers, [Arg::Input(1), Arg::Null]),
        }
    }

    /// Of logits and target; buffer 0 is the loss, or one a row without a divisor.
    pub(super) fn forward(self) -> Result<Program> {
        let Self { op, kind, dtype, rows, classes, divisor } = self;
        let end = suffix(op, dtype)?;
        let mut program = Program::default();
        let loss = program.buffer(dtype, if divisor.is_some() { 1 } else { rows });
        let losses = program.buffer(DType::F64, rows);
        let ([kind_, smoothing, temperature], [values, labels]) = self.target();
        let [r, c] = [count(op, rows)?, count(op, classes)?];
        program.launch(
            format!("softmax_loss_{end}"),
            Size::rows(rows, classes),
            &[Arg::Input(0), values, labels, losses, r, c, kind_, smoothing, temperature],
        )?;
        match divisor {
            Some(divisor) => program.launch(
                format!("softmax_loss_join_{end}"),
                Size::join(rows),
                &[losses, loss, r, Arg::F64(divisor / kind.factor())],
            )?,
            None => program.launch(
                format!("softmax_loss_rows_{end}"),
                Size::entries(rows),
                &[losses, loss, r, Arg::F64(kind.factor())],
            )?,
        }
        Ok(program)
    }

    /// Of logits, target and incoming gradient; buffer 0 is the gradient of the logits.
    pub(super) fn backward(self) -> Result<Program> {
        let Self { op, kind, dtype, rows, classes, divisor } = self;
        let mut program = Program::default();
        let ds = program.buffer(dtype, rows * classes);
        let ([kind_, smoothing, temperature], [values, labels]) = self.target();
        let [r, c] = [count(op, rows)?, count(op, classes)?];
        let single = Arg::U32(divisor.is_some().into());
        let scale = kind.factor() / (kind.temperature() * divisor.unwrap_or(1.));
        let inputs = [Arg::Input(0), values, labels, Arg::Input(2), ds];
        let numbers = [r, c, kind_, single, smoothing, temperature, Arg::F64(scale)];
        program.launch(
            format!("softmax_loss_backward_{}", suffix(op, dtype)?),
            Size::rows(rows, classes),
            &[&inputs[..], &numbers].concat(),
        )?;
        Ok(program)
    }
}
