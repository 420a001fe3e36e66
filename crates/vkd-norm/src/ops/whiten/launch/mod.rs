//! Whitening on a device: cuBLAS for the products, kernels for the factors and for what surrounds them.
//!
//! A device can't be asked, without waiting for it, which directions a factorisation would have to leave out. So it serves the
//! whitenings that leave none: those whose shrinkage lifts every direction over the rounding of the others, and Newton-Schulz,
//! which factors nothing.

mod polynomial;
mod shrink;
mod spectrum;
mod triangle;

use super::factor::pivot_floor;
use crate::ops::program::{Arg, Last, Program, Runner, Size, chunks, count, suffix};
use crate::{Deficient, WhitenConfig, WhitenMethod};
use candle_core::{DType, Result, Tensor};
use shrink::{Lift, Ridge};

const OP: &str = "whiten";

/// A whitening that a device serves, with the sizes of its rows.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    rows: usize,
    channels: usize,
    ridge: Ridge,
    method: WhitenMethod,
}

/// What the backward pass needs, in f64.
pub(super) struct Kept {
    centred: Tensor,
    /// `XᵀX`
    squares: Tensor,
    /// What became of the shrinkage; places as in `shrink.cuh`.
    state: Tensor,
    /// The squared lengths of the rows, where their fourth powers count.
    lengths: Option<Tensor>,
    w: Tensor,
    form: Form,
}

/// What the adjoint of each method needs beside `W`.
enum Form {
    Triangle,
    Spectrum(spectrum::Spectrum),
    Polynomial,
}

/// The gradient of the shrunk covariance, or of the covariance itself, and how it goes on.
struct Slope {
    /// Its symmetric part counts.
    matrix: Tensor,
    /// Times this.
    scale: f64,
    /// What the shrinkage leaves of it is taken off already.
    whole: bool,
    /// What diagonal and rows gain; places as in `shrink.cuh`.
    turn: Tensor,
}

impl Plan {
    /// `None` where the rows decide what is whitened, or where it is wider than a launch for each pair of rows allows.
    pub(super) fn new(config: WhitenConfig, rows: usize, channels: usize) -> Option<Self> {
        let factors = !matches!(config.method, WhitenMethod::NewtonSchulz { .. });
        let ridge = Ridge::new(config.shrinkage, rows, channels, factors)?;
        let served = match config.method {
            WhitenMethod::NewtonSchulz { .. } => config.deficient != Deficient::Refuse,
            WhitenMethod::Cholesky => config.deficient == Deficient::Full,
            WhitenMethod::Zca | WhitenMethod::Pca => {
                config.deficient == Deficient::Full && channels <= spectrum::WIDEST
            }
        };
        served.then_some(Self { rows, channels, ridge, method: config.method })
    }

    fn counts(&self) -> Result<[Arg; 2]> {
        Ok([count(OP, self.rows)?, count(OP, self.channels)?])
    }

    /// Entries of a `d x d` matrix, which kernels count in 32 bits.
    fn square(&self) -> usize {
        self.channels * self.channels
    }

    /// One row has no spread: its scatter is zero, whatever divides it.
    fn factor(&self) -> f64 {
        1. / (self.rows.max(2) - 1) as f64
    }

    /// Of the size of the covariance's own rounding.
    fn floor(&self) -> f64 {
        pivot_floor(self.rows as f64, self.channels)
    }

    /// A flat buffer as `(d, d)`.
    fn matrix(&self, buffer: &Tensor) -> Result<Tensor> {
        buffer.reshape((self.channels, self.channels))
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
        count(OP, self.square())?;
        let centred = self.centred(runner, xs)?;
        let scatter = centred.t()?.matmul(&centred)?;
        let lengths = self.lengths(runner, &centred)?;
        let Lift { state, unit } = self.lift(runner, &scatter, lengths.as_ref())?;
        let (w, form) = match self.method {
            WhitenMethod::Cholesky => (self.triangle(runner, &scatter, &state)?, Form::Triangle),
            WhitenMethod::NewtonSchulz { iterations } => {
                let start = self.polynomial_start(runner, &scatter, &state)?;
                (self.polynomial(runner, start, &state, iterations)?, Form::Polynomial)
            }
            WhitenMethod::Zca | WhitenMethod::Pca => {
                let (w, spectrum) = self.spectrum(runner, &scatter, &state, &unit)?;
                (w, Form::Spectrum(spectrum))
            }
        };
        let ys = centred.matmul(&w.t()?)?;
        let kept = Kept { centred, squares: scatter, state, lengths, w, form };
        Ok((self.written(xs.dtype(), vec![ys])?, kept))
    }

    /// With `W̄ = GᵀX` and `S̄` the gradient of the covariance: that of the rows is `G W + 2/(N - 1) X S̄`, and what an estimate
    /// of the shrinkage that reads fourth powers adds. In the type of `grad`.
    pub(super) fn backward(
        &self,
        runner: &dyn Runner,
        kept: &Kept,
        grad: &Tensor,
    ) -> Result<Tensor> {
        let Kept { centred, w, state, .. } = kept;
        // The mean passes nothing on of what all rows have in common.
        let of_ys = self.centred(runner, grad)?;
        let of_w = of_ys.t()?.matmul(centred)?;
        let slope = match (&kept.form, self.method) {
            (Form::Spectrum(spectrum), _) => self.spectral_slope(runner, spectrum, state, &of_w)?,
            (Form::Polynomial, WhitenMethod::NewtonSchulz { iterations }) => {
                self.polynomial_slope(runner, kept, iterations, &of_w)?
            }
            _ => self.triangular_slope(runner, kept, &of_w)?,
        };
        let adjoint = self.adjoint(runner, kept, &slope)?;
        let through = self.with_fourth(runner, kept, &slope, centred.matmul(&adjoint)?)?;
        let parts = vec![of_ys.matmul(w)?, through];
        self.written(grad.dtype(), parts)?.run(runner)?.reshape(grad.shape())
    }
}
