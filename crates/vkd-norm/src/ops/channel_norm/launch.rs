//! What batch norm and group norm launch on a device.

use super::cpu::Grid;
use crate::ops::program::{Arg, Program, Size, chunks, count, suffix};
use candle_core::{DType, Result};

/// A stack of samples and how it is normalised.
#[derive(Clone, Copy)]
pub(super) struct Channels {
    pub(super) op: &'static str,
    pub(super) grid: Grid,
    pub(super) dtype: DType,
    pub(super) eps: f64,
}

impl Channels {
    /// Columns of one set.
    fn width(self) -> usize {
        self.grid.channels / self.grid.groups
    }

    pub(super) fn sets(self) -> usize {
        self.grid.samples * self.grid.groups
    }

    fn entries(self) -> usize {
        self.grid.samples * self.grid.rows * self.grid.channels
    }

    /// Columns, chunks of rows and samples.
    fn size(self) -> Size {
        let columns = Size::columns(self.grid.channels, chunks(self.grid.rows).0);
        Size { grid: [columns.grid[0], columns.grid[1], self.grid.samples], ..columns }
    }

    /// Rows, channels, width and rows of a chunk.
    fn counts(self) -> Result<[Arg; 4]> {
        let Grid { rows, channels, .. } = self.grid;
        let per_chunk = chunks(rows).1;
        Ok([
            count(self.op, rows)?,
            count(self.op, channels)?,
            count(self.op, self.width())?,
            count(self.op, per_chunk)?,
        ])
    }

    /// Of input, gain and bias. Buffer 0 is the output, buffer 1 mean and 1 / deviation of every set, in f64, for the backward pass.
    ///
    /// The statistics are the input's own, and then buffer 2 is mean and biased variance of every set, (2, sets) in f64; or those of
    /// two more inputs, means and variances of the type `given`.
    pub(super) fn forward(self, given: Option<DType>) -> Result<Program> {
        let Self { op, grid, dtype, eps } = self;
        let end = suffix(op, dtype)?;
        let mut program = Program::default();
        let ys = program.buffer(dtype, self.entries());
        let stats = program.buffer(DType::F64, 2 * self.sets());
        let [rows, channels, width, per_chunk] = self.counts()?;
        let sets = count(op, self.sets())?;
        if let Some(given) = given {
            program.launch(
                format!("channel_norm_given_{}", suffix(op, given)?),
                Size::entries(self.sets()),
                &[Arg::Input(3), Arg::Input(4), stats, sets, Arg::F64(eps)],
            )?;
        } else {
            let moments = program.buffer(DType::F64, 2 * self.sets());
            let chunks = chunks(grid.rows).0;
            let parts = program.buffer(DType::F64, grid.samples * chunks * 3 * grid.channels);
            program.launch(
                format!("channel_norm_moments_{end}"),
                self.size(),
                &[Arg::Input(0), parts, rows, channels, per_chunk],
            )?;
            let chunks = count(op, chunks)?;
            program.launch(
                "channel_norm_stats".to_owned(),
                Size::entries(self.sets()),
                &[parts, stats, moments, sets, chunks, channels, width, Arg::F64(eps)],
            )?;
        }
        let [xs, weight, bias] = [0, 1, 2].map(Arg::Input);
        program.launch(
            format!("channel_norm_{end}"),
            self.size(),
            &[xs, weight, bias, stats, ys, rows, channels, width, per_chunk],
        )?;
        Ok(program)
    }

    /// Of input, gain, incoming gradient and statistics, through which the gradient goes if they are the input's own.
    /// Buffers 0 and 1 are the input's gradient, and the gain's followed by the bias's.
    pub(super) fn backward(self, own: bool) -> Result<Program> {
        let Self { op, grid, dtype, .. } = self;
        let end = suffix(op, dtype)?;
        let mut program = Program::default();
        let dxs = program.buffer(dtype, self.entries());
        let sums = program.buffer(dtype, 2 * grid.channels);
        let chunks = chunks(grid.rows).0;
        let parts = program.buffer(DType::F64, grid.samples * chunks * 2 * grid.channels);
        let [xs, weight, grad, stats] = [0, 1, 2, 3].map(Arg::Input);
        let [rows, channels, width, per_chunk] = self.counts()?;
        program.launch(
            format!("channel_norm_sums_{end}"),
            self.size(),
            &[xs, grad, stats, parts, rows, channels, width, per_chunk],
        )?;
        program.launch(
            format!("channel_norm_affine_{end}"),
            Size::entries(grid.channels),
            &[parts, sums, count(op, grid.samples * chunks)?, channels],
        )?;
        let terms = if own {
            let terms = program.buffer(DType::F64, 2 * self.sets());
            let [sets, chunks] = [count(op, self.sets())?, count(op, chunks)?];
            let of_set = Arg::F64((grid.rows * self.width()) as f64);
            program.launch(
                format!("channel_norm_terms_{end}"),
                Size::entries(self.sets()),
                &[parts, weight, terms, sets, chunks, channels, width, of_set],
            )?;
            terms
        } else {
            Arg::Null
        };
        program.launch(
            format!("channel_norm_backward_{end}"),
            self.size(),
            &[xs, weight, grad, stats, terms, dxs, rows, channels, width, per_chunk],
        )?;
        Ok(program)
    }
}
