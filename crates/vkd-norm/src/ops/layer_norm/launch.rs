//! What layer norm launches on a device.

use super::OP;
use crate::ops::program::{Arg, Program, Size, accumulator, chunks, count, suffix};
use candle_core::{DType, Result};

/// Sizes of the input and what its norm is guarded with.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) channels: usize,
    pub(super) eps: f64,
}

impl Rows {
    /// Of the input, and of gain and bias if `affine`; buffer 0 is the output.
    pub(super) fn forward(self, affine: bool) -> Result<Program> {
        let mut program = Program::default();
        let ys = program.buffer(self.dtype, self.rows * self.channels);
        let (size, cached) = Size::cached_rows(self.rows, self.channels, self.dtype);
        let [weight, bias] = if affine { [Arg::Input(1), Arg::Input(2)] } else { [Arg::Null; 2] };
        let [rows, channels, cached] = self.counts(cached)?;
        program.launch(
            format!("layer_norm_{}", suffix(OP, self.dtype)?),
            size,
            &[Arg::Input(0), weight, bias, ys, rows, channels, cached, Arg::F64(self.eps)],
        )?;
        Ok(program)
    }

    /// Of input and incoming gradient, with the gain between them if `affine`; buffer 0 is the input's gradient, and if
    /// `affine` buffer 1 the gain's and then the bias's.
    pub(super) fn backward(self, affine: bool) -> Result<Program> {
        let Self { dtype, rows, channels, eps } = self;
        let end = suffix(OP, dtype)?;
        let mut program = Program::default();
        let dxs = program.buffer(dtype, rows * channels);
        let (size, cached) = Size::cached_rows(self.rows, self.channels, self.dtype);
        let [rows_, channels_, cached] = self.counts(cached)?;
        let kernel = format!("layer_norm_backward_{end}");
        let sizes = [rows_, channels_, cached, Arg::F64(eps)];
        if !affine {
            let args = [Arg::Input(0), Arg::Null, Arg::Input(1), dxs, Arg::Null];
            program.launch(kernel, size, &[&args[..], &sizes].concat())?;
            return Ok(program);
        }
        let sums = program.buffer(dtype, 2 * channels);
        let kept = program.buffer(accumulator(dtype), 3 * rows);
        let (parts, per_part) = chunks(rows);
        let partial = program.buffer(accumulator(dtype), parts * 2 * channels);
        let args = [Arg::Input(0), Arg::Input(1), Arg::Input(2), dxs, kept];
        program.launch(kernel, size, &[&args[..], &sizes].concat())?;
        program.launch(
            format!("layer_norm_affine_{end}"),
            Size::columns(channels, parts),
            &[Arg::Input(0), Arg::Input(2), kept, partial, rows_, channels_, count(OP, per_part)?],
        )?;
        program.launch(
            format!("layer_norm_join_{end}"),
            Size::entries(2 * channels),
            &[partial, sums, count(OP, parts)?, count(OP, 2 * channels)?],
        )?;
        Ok(program)
    }

    fn counts(self, cached: usize) -> Result<[Arg; 3]> {
        Ok([count(OP, self.rows)?, count(OP, self.channels)?, count(OP, cached)?])
    }
}
