//! What softmax and its logarithm launch on a device.

use super::SOFTMAX;
use crate::ops::program::{Arg, Program, Size, count, suffix};
use candle_core::{DType, Result};

/// Of the logits; buffer 0 is the output.
pub(super) fn forward(dtype: DType, rows: usize, classes: usize, log: bool) -> Result<Program> {
    let mut program = Program::default();
    let ys = program.buffer(dtype, rows * classes);
    let (size, cached) = Size::cached_rows(rows, classes, dtype);
    let [rows, classes, cached] =
        [count(SOFTMAX, rows)?, count(SOFTMAX, classes)?, count(SOFTMAX, cached)?];
    let args = [Arg::Input(0), ys, rows, classes, cached, Arg::U32(log.into())];
    program.launch(format!("softmax_{}", suffix(SOFTMAX, dtype)?), size, &args)?;
    Ok(program)
}

/// Of output and incoming gradient; buffer 0 is the gradient of the logits.
pub(super) fn backward(dtype: DType, rows: usize, classes: usize, log: bool) -> Result<Program> {
    let mut program = Program::default();
    let dxs = program.buffer(dtype, rows * classes);
    let size = Size::rows(rows, classes);
    let [rows, classes] = [count(SOFTMAX, rows)?, count(SOFTMAX, classes)?];
    let args = [Arg::Input(0), Arg::Input(1), dxs, rows, classes, Arg::U32(log.into())];
    program.launch(format!("softmax_backward_{}", suffix(SOFTMAX, dtype)?), size, &args)?;
    Ok(program)
}
