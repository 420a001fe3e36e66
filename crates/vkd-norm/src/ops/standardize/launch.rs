//! What standardisation launches on a device.

use super::{OP, Variance};
use crate::ops::program::{Arg, Program, Size, chunks, count, suffix};
use candle_core::{DType, Result};

/// Sizes of the matrix, and how its statistics are taken.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) channels: usize,
    /// Whether there is a mask, the last input.
    pub(super) masked: bool,
    pub(super) variance: Variance,
    pub(super) eps: f64,
}

impl Columns {
    fn mask(self, at: usize) -> Arg {
        if self.masked { Arg::Input(at) } else { Arg::Null }
    }

    /// Of the input and the mask; buffer 0 holds numbers, means and sums of squares of all chunks.
    pub(super) fn moments(self) -> Result<Program> {
        let mut program = Program::default();
        let (chunks, _) = chunks(self.rows);
        let parts = program.buffer(DType::F64, chunks * 3 * self.channels);
        self.launch_moments(&mut program, parts)?;
        Ok(program)
    }

    fn launch_moments(self, program: &mut Program, parts: Arg) -> Result<()> {
        let (chunks, per_chunk) = chunks(self.rows);
        let [rows, channels, per_chunk] = self.counts(per_chunk)?;
        program.launch(
            format!("standardize_moments_{}", suffix(OP, self.dtype)?),
            Size::columns(self.channels, chunks),
            &[Arg::Input(0), self.mask(1), parts, rows, channels, per_chunk],
        )
    }

    /// Of the input and the mask; buffer 0 is the output, buffer 1 mean, 1 / denominator and number of rows of every
    /// channel, as the backward pass takes them.
    pub(super) fn forward(self) -> Result<Program> {
        let mut program = Program::default();
        let ys = program.buffer(self.dtype, self.rows * self.channels);
        let stats = program.buffer(DType::F64, 3 * self.channels);
        let (chunks, per_chunk) = chunks(self.rows);
        let parts = program.buffer(DType::F64, chunks * 3 * self.channels);
        self.launch_moments(&mut program, parts)?;
        let [rows, channels, per_chunk] = self.counts(per_chunk)?;
        program.launch(
            "standardize_join".to_owned(),
            Size::entries(self.channels),
            &[parts, stats, count(OP, chunks)?, channels, self.unbiased(), Arg::F64(self.eps)],
        )?;
        program.launch(
            format!("standardize_{}", suffix(OP, self.dtype)?),
            Size::columns(self.channels, chunks),
            &[Arg::Input(0), self.mask(1), stats, ys, rows, channels, per_chunk],
        )?;
        Ok(program)
    }

    /// Of input, incoming gradient, buffer 1 of the forward pass and the mask; buffer 0 is the input's gradient.
    pub(super) fn backward(self) -> Result<Program> {
        let end = suffix(OP, self.dtype)?;
        let mut program = Program::default();
        let dxs = program.buffer(self.dtype, self.rows * self.channels);
        let (chunks, per_chunk) = chunks(self.rows);
        let parts = program.buffer(DType::F64, chunks * 2 * self.channels);
        let terms = program.buffer(DType::F64, 2 * self.channels);
        let [xs, grad, stats] = [0, 1, 2].map(Arg::Input);
        let mask = self.mask(3);
        let [rows, channels, per_chunk] = self.counts(per_chunk)?;
        let size = Size::columns(self.channels, chunks);
        program.launch(
            format!("standardize_sums_{end}"),
            size,
            &[xs, grad, mask, stats, parts, rows, channels, per_chunk],
        )?;
        let [chunks, unbiased, eps] = [count(OP, chunks)?, self.unbiased(), Arg::F64(self.eps)];
        program.launch(
            "standardize_terms".to_owned(),
            Size::entries(self.channels),
            &[parts, stats, terms, chunks, channels, unbiased, eps],
        )?;
        program.launch(
            format!("standardize_backward_{end}"),
            size,
            &[xs, grad, mask, stats, terms, dxs, rows, channels, per_chunk],
        )?;
        Ok(program)
    }

    fn unbiased(self) -> Arg {
        Arg::U32((self.variance == Variance::Unbiased).into())
    }

    fn counts(self, per_chunk: usize) -> Result<[Arg; 3]> {
        Ok([count(OP, self.rows)?, count(OP, self.channels)?, count(OP, per_chunk)?])
    }
}
