//! What the kernels of the three maps share: sizes, and the inverse of the `k x k` cores.

use candle_core::{DType, Result, Tensor, bail};
use vkd_norm::program::{Arg, Last, Program, Runner, Size, count, suffix};

/// Rows, columns and pivots of a tile of the inverse; as in `tiles.cuh` of vkd-norm.
pub(super) const TILE: usize = 32;

/// `batch` parameters of `n x k` of a type.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) op: &'static str,
    pub(super) dtype: DType,
    pub(super) batch: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

impl Sizes {
    /// Of a parameter that [`check`](super::common::check) has passed.
    pub(super) fn of(op: &'static str, raw: &Tensor) -> Result<Self> {
        match raw.dims() {
            [batch @ .., n, k] => {
                let batch = batch.iter().product();
                Ok(Self { op, dtype: raw.dtype(), batch, n: *n, k: *k })
            }
            dims => bail!("{op}: expected (.., n, k), got {dims:?}"),
        }
    }

    pub(super) fn counts(&self) -> Result<[Arg; 3]> {
        Ok([count(self.op, self.batch)?, count(self.op, self.n)?, count(self.op, self.k)?])
    }

    /// A kernel for the type of the parameter.
    pub(super) fn kernel(&self, name: &str) -> Result<String> {
        Ok(format!("{name}_{}", suffix(self.op, self.dtype)?))
    }

    /// Adds a launch of a thread for each of `entries` of every matrix.
    pub(super) fn each(
        &self,
        program: &mut Program,
        kernel: String,
        entries: usize,
        args: &[Arg],
    ) -> Result<()> {
        // A kernel counts the entries of one matrix in 32 bits.
        count(self.op, entries)?;
        program.launch(kernel, Size::columns(entries, self.batch.min(65535)), args)
    }

    /// A flat buffer as `(batch, rows, columns)`.
    pub(super) fn matrices(&self, buffer: &Tensor, rows: usize, columns: usize) -> Result<Tensor> {
        buffer.reshape((self.batch, rows, columns))
    }

    /// The last program of a frame that `last` writes: one in f64 goes through a step of Newton's iteration for the nearest
    /// orthonormal matrix, because nothing is measured on a device and the law of f64 leaves no room.
    pub(super) fn finish(&self, runner: &dyn Runner, last: Last) -> Result<Last> {
        if self.dtype != DType::F64 {
            return Ok(last);
        }
        let q = self.matrices(&last.run(runner)?, self.n, self.k)?;
        let turned = q.matmul(&q.t()?.matmul(&q)?)?;
        let mut program = Program::default();
        let out = program.buffer(self.dtype, q.elem_count());
        let [batch, n, k] = self.counts()?;
        let args = [Arg::Input(0), Arg::Input(1), out, batch, n, k];
        self.each(&mut program, "frame_polish".to_owned(), self.n * self.k, &args)?;
        Ok(Last { program, inputs: vec![q, turned] })
    }

    /// Adds the inverse of `k x k` matrices that `start` writes from `inputs`, and returns the buffer that it ends in.
    ///
    /// `start` takes the inputs, the matrices, the first pivot tiles, and how many of which size.
    pub(super) fn inverse(
        &self,
        program: &mut Program,
        start: &str,
        inputs: &[Arg],
    ) -> Result<Arg> {
        let Self { op, batch, k, .. } = *self;
        let tiles = k.div_ceil(TILE);
        let square = |program: &mut Program| program.buffer(DType::F64, batch * k * k);
        let pivots = |program: &mut Program| program.buffer(DType::F64, batch * TILE * TILE);
        let (mut from, mut to) = (square(program), square(program));
        let (mut pivot, mut next) = (pivots(program), pivots(program));
        let size = Size { grid: [tiles, tiles, batch.min(65535)], block: [256, 1], shared: 0 };
        let [batch, _, k] = self.counts()?;
        let args = [inputs, &[from, pivot, batch, k]].concat();
        program.launch(start.to_owned(), size, &args)?;
        for step in 0..tiles {
            let args = [from, pivot, to, next, batch, k, count(op, step)?];
            program.launch("inverse_step".to_owned(), size, &args)?;
            std::mem::swap(&mut from, &mut to);
            std::mem::swap(&mut pivot, &mut next);
        }
        Ok(from)
    }
}

/// The number of a buffer among those that a program hands out.
pub(super) fn place(buffer: Arg) -> usize {
    match buffer {
        Arg::Buffer(at) => at,
        _ => 0,
    }
}
