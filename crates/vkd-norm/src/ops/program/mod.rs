//! What an op launches on a device, as data: buffers, and kernels with their sizes and arguments, in order.
//!
//! An op says what it launches without doing it. `cuda.rs` carries a program out on the stream of its device; tests carry
//! the same program out on the host, so that sizes, grids and the order of launches are proved there as well. Public for
//! vkd-loss and vkd-nn, which share it; no part of the stable interface.

#[cfg(feature = "cuda")]
mod cuda;
mod taped;

use candle_core::{DType, Error, Result, Tensor, bail};
#[cfg(feature = "cuda")]
pub use cuda::{Source, recorded, run, run_on_tensors};
pub use taped::taped;

/// Threads of a warp.
const WARP: usize = 32;

/// Shared memory that every device gives a block without being asked.
const SHARED_BYTES: usize = 48 << 10;

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// One of the tensors that the op reads.
    Input(usize),
    /// One of the program's buffers, written or read.
    Buffer(usize),
    /// No buffer: a null pointer.
    Null,
    /// One of the program's tables: a pointer to its words.
    Table(usize),
    /// `unsigned`
    U32(u32),
    /// `double`
    F64(f64),
}

/// One word of a table, `uint64_t`: what a kernel reads about many tensors at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Word {
    /// The address of one of the tensors that the op reads.
    Input(usize),
    /// The address of one of the op's tensors that the kernel writes in place.
    InPlace(usize),
    /// A null pointer.
    Null,
    /// A number.
    U64(u64),
    /// The bits of a `double`.
    F64(f64),
}

impl Word {
    /// The word, where the inputs are at `addresses`.
    fn bits(self, addresses: impl Fn(usize) -> u64) -> u64 {
        match self {
            Self::Input(i) | Self::InPlace(i) => addresses(i),
            Self::Null => 0,
            Self::U64(n) => n,
            Self::F64(x) => x.to_bits(),
        }
    }
}

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub(crate) kernel: String,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
    pub(crate) args: Vec<Arg>,
}

/// How many blocks of how many threads, and the bytes of shared memory of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    /// Blocks along x, y and z.
    pub grid: [usize; 3],
    /// Threads along x and y.
    pub block: [usize; 2],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
}

impl Size {
    /// A block for each of `rows` rows of `length` entries, with about four entries a thread where there are many.
    pub fn rows(rows: usize, length: usize) -> Self {
        let threads = length.div_ceil(4).next_multiple_of(WARP).clamp(WARP, 256);
        // Kernels walk on in steps of the grid.
        Self { grid: [rows.clamp(1, 1 << 20), 1, 1], block: [threads, 1], shared: 0 }
    }

    /// [`rows`](Self::rows) for kernels that keep a row in shared memory, in the type of their arithmetic for `dtype`, and
    /// the length of the rows that they keep: zero if these are too long.
    pub fn cached_rows(rows: usize, length: usize, dtype: DType) -> (Self, usize) {
        let bytes = accumulator(dtype).size_in_bytes();
        // Half of what a block may have, so that a multiprocessor holds several.
        let cached = if length <= SHARED_BYTES / 2 / bytes { length } else { 0 };
        (Self { shared: cached * bytes, ..Self::rows(rows, length) }, cached)
    }

    /// A thread for each of `entries` entries.
    pub fn entries(entries: usize) -> Self {
        let threads = if entries < 256 { entries.next_multiple_of(WARP).max(WARP) } else { 256 };
        Self { grid: [entries.div_ceil(threads).max(1), 1, 1], block: [threads, 1], shared: 0 }
    }

    /// Blocks that walk over `entries` entries and leave one sum each: as many as fill a device, not more.
    pub fn sums(entries: usize) -> Self {
        let Self { grid, block, shared } = Self::entries(entries.div_ceil(4));
        Self { grid: [grid[0].min(1024), 1, 1], block, shared }
    }

    /// Blocks along x that walk over up to `most` entries, for each of `tensors` along y.
    pub fn many(most: usize, tensors: usize) -> Self {
        let Self { grid, block, shared } = Self::entries(most.div_ceil(4));
        Self { grid: [grid[0].min(256), tensors.max(1), 1], block, shared }
    }

    /// One block, for `parts` sums.
    pub fn join(parts: usize) -> Self {
        Self { grid: [1; 3], block: [parts.next_multiple_of(WARP).clamp(WARP, 256), 1], shared: 0 }
    }

    /// A thread for each of `columns` columns along x, and `chunks` along y.
    pub fn columns(columns: usize, chunks: usize) -> Self {
        let entries = Self::entries(columns);
        Self { grid: [entries.grid[0], chunks, 1], ..entries }
    }
}

/// Parts that `rows` rows are summed in, and the rows of a part: a function of their number alone.
pub fn chunks(rows: usize) -> (usize, usize) {
    let per_chunk = rows.div_ceil(512).max(16);
    (rows.div_ceil(per_chunk).max(1), per_chunk)
}

/// Buffers, tables and launches, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    pub(crate) buffers: Vec<(DType, usize)>,
    pub(crate) tables: Vec<Vec<Word>>,
    pub(crate) launches: Vec<Launch>,
}

impl Program {
    /// A buffer of `len` entries of `dtype`, of which nothing is known at first.
    pub fn buffer(&mut self, dtype: DType, len: usize) -> Arg {
        self.buffers.push((dtype, len));
        Arg::Buffer(self.buffers.len() - 1)
    }

    /// A table that goes to the device before the first launch. It may name any number of inputs, none of them written that another
    /// word names.
    pub fn table(&mut self, words: Vec<Word>) -> Arg {
        self.tables.push(words);
        Arg::Table(self.tables.len() - 1)
    }

    /// Adds a launch; every buffer may stand once among `args`.
    ///
    /// # Errors
    /// A grid or block that no device takes.
    pub fn launch(&mut self, kernel: String, size: Size, args: &[Arg]) -> Result<()> {
        let Size { grid, block, shared } = size;
        let threads = block[0] * block[1];
        let fits = grid[0] <= i32::MAX as usize && grid[1].max(grid[2]) <= 65535;
        if !fits || grid.contains(&0) || shared > SHARED_BYTES {
            bail!(
                "{kernel}: a grid of {grid:?} with {shared} bytes of shared memory fits no device"
            )
        }
        if threads == 0 || threads > 1024 || !threads.is_multiple_of(WARP) {
            bail!("{kernel}: expected whole warps of at most 1024 threads, got {block:?}")
        }
        let narrow = |n: usize| n as u32;
        self.launches.push(Launch {
            kernel,
            grid: grid.map(narrow),
            block: [narrow(block[0]), narrow(block[1]), 1],
            shared: narrow(shared),
            args: args.to_vec(),
        });
        Ok(())
    }

    /// Number, type and length of every buffer, as the host's emulator in vkd-testkit hands them out.
    pub fn outputs(&self) -> Vec<(usize, DType, Vec<usize>)> {
        let output = |(at, (dtype, len)): (usize, &(DType, usize))| (at, *dtype, vec![*len]);
        self.buffers.iter().enumerate().map(output).collect()
    }

    /// The program as the host's emulator in vkd-testkit reads it.
    pub fn script(&self) -> String {
        let mut text = String::new();
        for (dtype, len) in &self.buffers {
            text += &format!("buffer {}\n", len * dtype.size_in_bytes());
        }
        for words in &self.tables {
            text += &format!("table {}", words.len());
            for word in words {
                text += &match word {
                    Word::Input(i) | Word::InPlace(i) => format!(" i{i}"),
                    word => format!(" u{}", word.bits(|_| 0)),
                };
            }
            text.push('\n');
        }
        for Launch { kernel, grid: [x, y, z], block: [a, b, c], shared, args } in &self.launches {
            text += &format!("launch {kernel} {x} {y} {z} {a} {b} {c} {shared} {}", args.len());
            for arg in args {
                text += &match arg {
                    Arg::Input(i) => format!(" i{i}"),
                    Arg::Buffer(i) => format!(" b{i}"),
                    Arg::Null => " n".to_owned(),
                    Arg::Table(i) => format!(" t{i}"),
                    Arg::U32(n) => format!(" d{n}"),
                    Arg::F64(x) => format!(" d{x:e}"),
                };
            }
            text.push('\n');
        }
        text
    }
}

/// Carries out programs between products of candle's own: a device, or in tests the host.
///
/// An op that needs both is written against this, so that the same steps are proved on the host and run on a device.
pub trait Runner {
    /// The buffers of `program`, each of one dimension, off the tape.
    ///
    /// # Errors
    /// Whatever the device or the emulator found.
    fn run(&self, program: &Program, inputs: &[&Tensor]) -> Result<Vec<Tensor>>;

    /// A product of matrices in the type of its factors.
    ///
    /// # Errors
    /// candle's, which on the CPU has no product of bf16.
    fn product(&self, lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
        lhs.matmul(rhs)
    }
}

/// The last program of an op, whose first buffer is the result, and the tensors that it reads.
#[derive(Debug)]
pub struct Last {
    /// One launch or more.
    pub program: Program,
    /// Dense, and none of them the op's own input.
    pub inputs: Vec<Tensor>,
}

impl Last {
    /// The result, flat and off the tape.
    ///
    /// # Errors
    /// Those of the runner.
    pub fn run(&self, runner: &dyn Runner) -> Result<Tensor> {
        let inputs: Vec<&Tensor> = self.inputs.iter().collect();
        Ok(runner.run(&self.program, &inputs)?.swap_remove(0))
    }
}

/// Whether an op on `xs` has a kernel to launch: not on the CPU, not without the feature, not for nothing.
pub fn applies(xs: &Tensor) -> bool {
    cfg!(feature = "cuda") && xs.device().is_cuda() && xs.elem_count() > 0
}

/// The end of a kernel's name for the element type.
///
/// # Errors
/// A type that no kernel has.
pub fn suffix(op: &'static str, dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::F64 => Ok("f64"),
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        other => Err(Error::UnsupportedDTypeForOp(other, op).bt()),
    }
}

/// The type of a kernel's arithmetic and of its partial sums.
pub fn accumulator(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// A size as a kernel takes it.
///
/// # Errors
/// 2³² and more.
pub fn count(op: &'static str, n: usize) -> Result<Arg> {
    match u32::try_from(n) {
        Ok(n) => Ok(Arg::U32(n)),
        Err(_) => {
            bail!("{op}: expected less than 2^32 rows, columns and parts on a device, got {n}")
        }
    }
}
