//! What the losses by element launch on a device.

use super::Pointwise;
use candle_core::{DType, Result};
use vkd_norm::program::{Arg, Program, Size, count, suffix};

impl Pointwise {
    /// The kind and its numbers, as the kernels take them.
    fn args(self) -> [Arg; 3] {
        let (kind, a, b) = match self {
            Self::Mse => (0, 0., 0.),
            Self::SmoothL1 { beta } => (1, beta, 0.),
            Self::L1 => (2, 0., 0.),
            Self::Bce => (3, 0., 0.),
            Self::Focal { alpha, gamma } => (4, alpha, gamma),
        };
        [Arg::U32(kind), Arg::F64(a), Arg::F64(b)]
    }
}

/// Of student and teacher; buffer 0 is the loss, or one an entry without a divisor.
pub(super) fn forward(
    kind: Pointwise,
    dtype: DType,
    entries: usize,
    divisor: Option<f64>,
) -> Result<Program> {
    let end = suffix(kind.op(), dtype)?;
    let mut program = Program::default();
    let n = count(kind.op(), entries)?;
    let [k, a, b] = kind.args();
    let Some(divisor) = divisor else {
        let losses = program.buffer(dtype, entries);
        let args = [Arg::Input(0), Arg::Input(1), losses, n, k, a, b];
        program.launch(format!("pointwise_{end}"), Size::entries(entries), &args)?;
        return Ok(program);
    };
    let loss = program.buffer(dtype, 1);
    let size = Size::sums(entries);
    let parts = size.grid[0];
    let sums = program.buffer(DType::F64, parts);
    let args = [Arg::Input(0), Arg::Input(1), sums, n, k, a, b];
    program.launch(format!("pointwise_sum_{end}"), size, &args)?;
    let args = [sums, loss, count(kind.op(), parts)?, Arg::F64(divisor)];
    program.launch(format!("pointwise_join_{end}"), Size::join(parts), &args)?;
    Ok(program)
}

/// Of student, teacher and incoming gradient; buffer 0 is the gradient of the student.
pub(super) fn backward(
    kind: Pointwise,
    dtype: DType,
    entries: usize,
    divisor: Option<f64>,
) -> Result<Program> {
    let mut program = Program::default();
    let ds = program.buffer(dtype, entries);
    let [student, teacher, grad] = [0, 1, 2].map(Arg::Input);
    let [k, a, b] = kind.args();
    let divisor = Arg::F64(divisor.unwrap_or(0.));
    program.launch(
        format!("pointwise_backward_{}", suffix(kind.op(), dtype)?),
        Size::entries(entries),
        &[student, teacher, grad, ds, count(kind.op(), entries)?, k, a, b, divisor],
    )?;
    Ok(program)
}
