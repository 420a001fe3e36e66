//! What the fused loss launches on a device.

use super::{OP, Terms};
use candle_core::{DType, Result};
use vkd_norm::program::{Arg, Program, Size, accumulator, count, suffix};

/// Blocks that the rows of the forward pass are shared among.
const BLOCKS: usize = 1024;

/// Of student and teacher; buffer 0 is the loss, in the type of the arithmetic.
pub(super) fn forward(terms: Terms, dtype: DType, rows: usize) -> Result<Program> {
    let Terms { channels, beta, eps } = terms;
    let mut program = Program::default();
    let loss = program.buffer(accumulator(dtype), 1);
    let (size, cached) = Size::cached_rows(rows.min(BLOCKS), channels, dtype);
    let parts = size.grid[0];
    let buffer = program.buffer(DType::F64, parts);
    let end = suffix(OP, dtype)?;
    let [r, c, cached] = [count(OP, rows)?, count(OP, channels)?, count(OP, cached)?];
    program.launch(
        format!("normed_smooth_l1_{end}"),
        size,
        &[Arg::Input(0), Arg::Input(1), buffer, r, c, cached, Arg::F64(beta), Arg::F64(eps)],
    )?;
    program.launch(
        format!("normed_smooth_l1_join_{end}"),
        Size::join(parts),
        &[buffer, loss, count(OP, parts)?, Arg::F64((rows * channels) as f64)],
    )?;
    Ok(program)
}

/// Of student, teacher and incoming gradient; buffer 0 is the gradient of the student.
pub(super) fn backward(terms: Terms, dtype: DType, rows: usize) -> Result<Program> {
    let Terms { channels, beta, eps } = terms;
    let mut program = Program::default();
    let ds = program.buffer(dtype, rows * channels);
    let (size, cached) = Size::cached_rows(rows, channels, dtype);
    let [student, teacher, grad] = [0, 1, 2].map(Arg::Input);
    let [r, c, cached] = [count(OP, rows)?, count(OP, channels)?, count(OP, cached)?];
    program.launch(
        format!("normed_smooth_l1_backward_{}", suffix(OP, dtype)?),
        size,
        &[student, teacher, grad, ds, r, c, cached, Arg::F64(beta), Arg::F64(eps)],
    )?;
    Ok(program)
}
