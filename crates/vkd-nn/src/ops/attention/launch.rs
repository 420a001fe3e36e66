//! What attention launches on a device.

use super::cpu::{Counts, Sizes};
use candle_core::{DType, Result, bail};
use vkd_norm::program::{Arg, Program, Size, accumulator, count, suffix};

const OP: &str = super::OP;

/// Threads of a block.
const THREADS: usize = 256;

/// Attention of one dtype. Its operands are the packed three, or queries and then keys with values; and then a bias, if there is one.
#[derive(Clone, Copy)]
pub(super) struct Attention {
    pub(super) sizes: Sizes,
    pub(super) counts: Option<Counts>,
    pub(super) packed: bool,
    pub(super) dtype: DType,
}

impl Attention {
    /// Queries or keys of a block, and columns of a head that it writes.
    fn tile(self) -> usize {
        if accumulator(self.dtype) == DType::F64 { 32 } else { 64 }
    }

    /// Operands without the bias.
    fn operands(self) -> usize {
        if self.packed { 1 } else { 2 }
    }

    /// Queries, keys with values, and bias.
    fn inputs(self) -> [Arg; 3] {
        let bias = self.counts.map_or(Arg::Null, |_| Arg::Input(self.operands()));
        [Arg::Input(0), Arg::Input(self.operands() - 1), bias]
    }

    fn sizes(self) -> Result<Vec<Arg>> {
        let s = self.sizes;
        // The kernels add a tile to them in 32 bits.
        if s.queries.max(s.keys) > i32::MAX as usize {
            bail!("{OP}: expected less than 2^31 queries and keys on a device")
        }
        let (of_q, of_kv) = if self.packed { (3, 3) } else { (1, 2) };
        let [samples, heads, rows] = self.counts.unwrap_or([1; 3]);
        let all = [s.batch, s.queries, s.keys, s.heads, s.dim, of_q, of_kv, samples, heads, rows];
        let mut args = all.into_iter().map(|n| count(OP, n)).collect::<Result<Vec<_>>>()?;
        args.push(Arg::F64((s.dim as f64).sqrt().recip()));
        Ok(args)
    }

    /// A block for each tile of `rows` rows, tile of a head's columns, head and sample.
    fn blocks(self, rows: usize) -> Size {
        let s = self.sizes;
        let tiles = rows.div_ceil(self.tile()) * s.dim.div_ceil(self.tile());
        Size { grid: [tiles * s.heads * s.batch, 1, 1], block: [THREADS, 1], shared: 0 }
    }

    /// Of the operands. Buffer 0 is the output; buffer 1 is the logarithm of the sum of the exponentials of each row of scores,
    /// `(B, heads, N)`.
    pub(super) fn forward(self) -> Result<Program> {
        let s = self.sizes;
        let mut program = Program::default();
        let out = program.buffer(self.dtype, s.batch * s.queries * s.width());
        let logs = program.buffer(accumulator(self.dtype), s.batch * s.heads * s.queries);
        let args: Vec<Arg> =
            self.inputs().into_iter().chain([out, logs]).chain(self.sizes()?).collect();
        let kernel = format!("attention_{}", suffix(OP, self.dtype)?);
        program.launch(kernel, self.blocks(s.queries), &args)?;
        Ok(program)
    }

    /// Of the operands, the output, its gradient and the logarithms. There is a buffer for the gradient of each operand, empty where
    /// it is not wanted.
    pub(super) fn backward(self, wanted: &[bool]) -> Result<Program> {
        let (s, end) = (self.sizes, suffix(OP, self.dtype)?);
        let mut program = Program::default();
        let rows = s.batch * s.queries;
        let lengths = match self.packed {
            true => vec![3 * rows * s.width()],
            false => vec![rows * s.width(), 2 * s.batch * s.keys * s.width()],
        };
        let of_bias = self.counts.map(|counts| counts.iter().product::<usize>() * s.keys);
        let mut buffers = Vec::with_capacity(3);
        for (length, wanted) in lengths.into_iter().chain(of_bias).zip(wanted) {
            buffers.push(program.buffer(self.dtype, if *wanted { length } else { 0 }));
        }
        let first = self.operands() + usize::from(self.counts.is_some());
        let [out, grad, logs] = [0, 1, 2].map(|i| Arg::Input(first + i));
        let means = program.buffer(accumulator(self.dtype), rows * s.heads);
        let warps = THREADS / 32;
        let grid = [(rows * s.heads).div_ceil(warps), 1, 1];
        program.launch(
            format!("attention_means_{end}"),
            Size { grid, block: [THREADS, 1], shared: 0 },
            &[out, grad, means, count(OP, rows * s.heads)?, count(OP, s.dim)?],
        )?;
        let sizes = self.sizes()?;
        let mut launch = |kernel: &str, operand: usize, size: Size| -> Result<()> {
            // No block where there are no keys.
            if wanted.get(operand) != Some(&true) || size.grid[0] == 0 {
                return Ok(());
            }
            let inputs = self.inputs().into_iter().chain([grad, logs, means]);
            let args: Vec<Arg> = inputs.chain([buffers[operand]]).chain(sizes.clone()).collect();
            program.launch(format!("{kernel}_{end}"), size, &args)
        };
        launch("attention_queries", 0, self.blocks(s.queries))?;
        launch("attention_keys", self.operands() - 1, self.blocks(s.keys))?;
        if let Some([samples, heads, rows]) = self.counts {
            let tiles = s.keys.div_ceil(self.tile()) * rows.div_ceil(self.tile());
            let grid = [tiles * heads * samples, 1, 1];
            let size = Size { grid, block: [THREADS, 1], shared: 0 };
            launch("attention_bias", self.operands(), size)?;
        }
        Ok(program)
    }
}
