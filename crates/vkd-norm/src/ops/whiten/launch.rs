//! Whitening by Cholesky on a device: cuBLAS for the products, kernels for the factor and for what surrounds them.
//!
//! A device can't be asked, without waiting for it, which channels a factorisation would have to leave out. So it serves the
//! whitenings that leave none: those whose shrinkage lifts every direction over the rounding of the others.

use super::factor::pivot_floor;
use crate::ops::program::{Arg, Last, Program, Runner, Size, chunks, count, suffix};
use crate::{Deficient, Shrinkage, WhitenConfig, WhitenMethod};
use candle_core::{DType, Result, Tensor};

const OP: &str = "whiten";

/// Rows, columns and pivots of a tile; as in `tiles.cuh`.
const TILE: usize = 32;

/// A whitening that a device serves, with the sizes of its rows.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    rows: usize,
    channels: usize,
    rho: f64,
    /// The target is this share of the trace ..
    share: f64,
    /// .. and this.
    level: f64,
}

/// What the backward pass needs, in f64: the centred rows and `W`.
pub(super) struct Kept {
    centred: Tensor,
    w: Tensor,
}

impl Plan {
    /// `None` where the rows decide what is whitened, or by how much.
    pub(super) fn new(config: WhitenConfig, rows: usize, channels: usize) -> Option<Self> {
        let d = channels as f64;
        let (rho, share, level) = match config.shrinkage {
            // As on the CPU; the trace is on both sides.
            Shrinkage::Fixed(rho)
                if rho / d > pivot_floor(rows as f64, channels) * (1. - rho + rho / d) =>
            {
                (rho, rho / d, 0.)
            }
            // How the scale of the rows compares with the target is not known.
            Shrinkage::Absolute(eps) if eps > 0. => (eps, 0., eps),
            _ => return None,
        };
        let served = config.method == WhitenMethod::Cholesky && config.deficient == Deficient::Full;
        served.then_some(Self { rows, channels, rho, share, level })
    }

    fn counts(&self) -> Result<[Arg; 2]> {
        Ok([count(OP, self.rows)?, count(OP, self.channels)?])
    }

    /// One row has no spread: its scatter is zero, whatever divides it.
    fn factor(&self) -> f64 {
        1. / (self.rows.max(2) - 1) as f64
    }

    /// Rows of `input` in f64, less their mean.
    fn centred(&self, runner: &dyn Runner, input: &Tensor) -> Result<Tensor> {
        let Self { rows, channels, .. } = *self;
        let end = suffix(OP, input.dtype())?;
        let [rows_, columns] = self.counts()?;
        let mut program = Program::default();
        let out = program.buffer(DType::F64, rows * channels);
        let (parts, per_part) = chunks(rows);
        let sums = program.buffer(DType::F64, parts * channels);
        let means = [0, 1].map(|_| program.buffer(DType::F64, channels));
        for (less, mean) in [(Arg::Null, means[0]), (means[0], means[1])] {
            let args = [Arg::Input(0), less, sums, rows_, columns, count(OP, per_part)?];
            program.launch(format!("whiten_sums_{end}"), Size::columns(channels, parts), &args)?;
            let args = [sums, mean, count(OP, parts)?, columns, Arg::F64(rows as f64)];
            program.launch("whiten_mean".to_owned(), Size::entries(channels), &args)?;
        }
        let args = [Arg::Input(0), means[0], means[1], out, rows_, columns];
        program.launch(format!("whiten_centre_{end}"), Size::entries(rows * channels), &args)?;
        runner.run(&program, &[input])?.swap_remove(0).reshape((rows, channels))
    }

    /// `W`, lower triangular, from the scatter of the rows.
    fn whitener(&self, runner: &dyn Runner, scatter: &Tensor) -> Result<Tensor> {
        let d = self.channels;
        let [_, columns] = self.counts()?;
        let mut program = Program::default();
        let w = program.buffer(DType::F64, d * d);
        let state = program.buffer(DType::F64, 2);
        let [mut from, mut to] = [0, 1].map(|_| program.buffer(DType::F64, d * d));
        let [mut pivot, mut next] = [0, 1].map(|_| program.buffer(DType::F64, TILE * TILE));
        let scale = [self.factor(), self.rho, self.level, self.share].map(Arg::F64);
        let args = [&[Arg::Input(0), state, columns][..], &scale].concat();
        program.launch("whiten_ridge".to_owned(), Size::join(d), &args)?;
        let tiles = d.div_ceil(TILE);
        let size = Size { grid: [tiles, tiles, 1], block: [256, 1], shared: 0 };
        let factor = Arg::F64((1. - self.rho) * self.factor());
        let args = [Arg::Input(0), state, from, pivot, columns, factor];
        program.launch("whiten_start".to_owned(), size, &args)?;
        for step in 0..tiles {
            let args = [from, pivot, state, to, next, w, columns, count(OP, step)?];
            program.launch("whiten_step".to_owned(), size, &args)?;
            std::mem::swap(&mut from, &mut to);
            std::mem::swap(&mut pivot, &mut next);
        }
        runner.run(&program, &[scatter])?.swap_remove(0).reshape((d, d))
    }

    /// Writes one matrix of rows, or the sum of two, in a type.
    fn written(&self, dtype: DType, inputs: Vec<Tensor>) -> Result<Last> {
        let [rows, columns] = self.counts()?;
        let mut program = Program::default();
        let entries = self.rows * self.channels;
        let out = program.buffer(dtype, entries);
        let other = if inputs.len() > 1 { Arg::Input(1) } else { Arg::Null };
        let args = [Arg::Input(0), other, out, rows, columns];
        let kernel = format!("whiten_rows_{}", suffix(OP, dtype)?);
        program.launch(kernel, Size::entries(entries), &args)?;
        Ok(Last { program, inputs })
    }

    /// All of the forward pass but for the launch that writes the rows.
    pub(super) fn forward(&self, runner: &dyn Runner, xs: &Tensor) -> Result<(Last, Kept)> {
        let centred = self.centred(runner, xs)?;
        let w = self.whitener(runner, &centred.t()?.matmul(&centred)?)?;
        let ys = centred.matmul(&w.t()?)?;
        Ok((self.written(xs.dtype(), vec![ys])?, Kept { centred, w }))
    }

    /// With `P` the lower triangle of `W̄ Wᵀ`, mirrored, and `W̄ = GᵀX`: the shrunk covariance's gradient is `-Wᵀ P W / 2`, and
    /// that of the rows `G W + 2/(N - 1) X S̄`. In the type of `grad`.
    pub(super) fn backward(
        &self,
        runner: &dyn Runner,
        kept: &Kept,
        grad: &Tensor,
    ) -> Result<Tensor> {
        let Self { channels: d, .. } = *self;
        let Kept { centred, w } = kept;
        let [_, columns] = self.counts()?;
        // The mean passes nothing on of what all rows have in common.
        let of_ys = self.centred(runner, grad)?;
        let of_w = of_ys.t()?.matmul(centred)?.matmul(&w.t()?)?;
        let mut program = Program::default();
        let mirrored = program.buffer(DType::F64, d * d);
        let args = [Arg::Input(0), mirrored, columns];
        program.launch("whiten_mirror".to_owned(), Size::entries(d * d), &args)?;
        let mirrored = runner.run(&program, &[&of_w])?.swap_remove(0).reshape((d, d))?;
        let around = w.t()?.matmul(&mirrored.matmul(w)?)?;

        let mut program = Program::default();
        let adjoint = program.buffer(DType::F64, d * d);
        let trace = program.buffer(DType::F64, 2);
        let plain = [1., 0., 0., 1.].map(Arg::F64);
        let args = [&[Arg::Input(0), trace, columns][..], &plain].concat();
        program.launch("whiten_ridge".to_owned(), Size::join(d), &args)?;
        let scale = [2. * self.factor(), self.rho, self.share].map(Arg::F64);
        let args = [&[Arg::Input(0), trace, adjoint, columns][..], &scale].concat();
        program.launch("whiten_adjoint".to_owned(), Size::entries(d * d), &args)?;
        let adjoint = runner.run(&program, &[&around])?.swap_remove(0).reshape((d, d))?;
        let parts = vec![of_ys.matmul(w)?, centred.matmul(&adjoint)?];
        self.written(grad.dtype(), parts)?.run(runner)?.reshape(grad.shape())
    }
}
