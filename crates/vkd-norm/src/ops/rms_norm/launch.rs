//! What RMS norm launches on a device.

use super::OP;
use crate::ops::program::{Arg, Program, Size, accumulator, chunks, count, suffix};
use candle_core::{DType, Result};

/// Of input and gain; buffer 0 is the output.
pub(super) fn forward(dtype: DType, rows: usize, channels: usize, eps: f64) -> Result<Program> {
    let mut program = Program::default();
    let ys = program.buffer(dtype, rows * channels);
    let (size, cached) = Size::cached_rows(rows, channels, dtype);
    let [rows, channels, cached] = [count(OP, rows)?, count(OP, channels)?, count(OP, cached)?];
    let args = [Arg::Input(0), Arg::Input(1), ys, rows, channels, cached, Arg::F64(eps)];
    program.launch(format!("rms_norm_{}", suffix(OP, dtype)?), size, &args)?;
    Ok(program)
}

/// Of input, gain and incoming gradient; buffers 0 and 1 are the gradients of the first two.
pub(super) fn backward(dtype: DType, rows: usize, channels: usize, eps: f64) -> Result<Program> {
    let end = suffix(OP, dtype)?;
    let mut program = Program::default();
    let dxs = program.buffer(dtype, rows * channels);
    let dw = program.buffer(dtype, channels);
    let kept = program.buffer(accumulator(dtype), rows);
    let (parts, per_part) = chunks(rows);
    let partial = program.buffer(accumulator(dtype), parts * channels);
    let (size, cached) = Size::cached_rows(rows, channels, dtype);
    let [xs, weight, grad] = [0, 1, 2].map(Arg::Input);
    let [r, c, cached] = [count(OP, rows)?, count(OP, channels)?, count(OP, cached)?];
    program.launch(
        format!("rms_norm_backward_{end}"),
        size,
        &[xs, weight, grad, dxs, kept, r, c, cached, Arg::F64(eps)],
    )?;
    program.launch(
        format!("rms_norm_gain_{end}"),
        Size::columns(channels, parts),
        &[xs, grad, kept, partial, r, c, count(OP, per_part)?],
    )?;
    program.launch(
        format!("rms_norm_join_{end}"),
        Size::entries(channels),
        &[partial, dw, count(OP, parts)?, c],
    )?;
    Ok(program)
}
