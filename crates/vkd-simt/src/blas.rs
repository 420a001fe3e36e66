//! Products of matrices on the CPU, as cuBLAS has them: columns one after another, strided batches.
#![allow(unsafe_code, reason = "matrices lie in device memory, which is raw memory of the host")]

use gemm::Parallelism;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::Fault;
use crate::memory::{Memory, pointer};

/// Products of a batch with fewer multiplications than this are made by one thread each.
const SMALL: usize = 64 * 64 * 64;

/// The type of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    F16,
    Bf16,
    F32,
    F64,
}

impl Number {
    fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// A batch of matrices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub(crate) address: u64,
    pub(crate) number: Number,
    /// Numbers from a column to the next.
    pub(crate) ld: usize,
    /// Numbers from a matrix of the batch to the next.
    pub(crate) stride: usize,
}

/// `C = alpha op(A) op(B) + beta C` with `op(A)` (m, k), `op(B)` (k, n) and C (m, n). Where beta is 0, C isn't read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    /// Whether A and B are.
    pub(crate) is_transposed: [bool; 2],
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) alpha: f64,
    pub(crate) beta: f64,
    pub(crate) a: Matrix,
    pub(crate) b: Matrix,
    pub(crate) c: Matrix,
    pub(crate) batch: usize,
}

impl Product {
    /// Rows and columns of A, B and C as they lie.
    fn shapes(&self) -> [(usize, usize); 3] {
        let turned =
            |(rows, columns), turn: bool| if turn { (columns, rows) } else { (rows, columns) };
        let [a, b] = self.is_transposed;
        [turned((self.m, self.k), a), turned((self.k, self.n), b), (self.m, self.n)]
    }

    /// What cuBLAS refuses.
    pub(crate) fn check(&self) -> Result<(), String> {
        let matrices = [("A", self.a), ("B", self.b), ("C", self.c)];
        for ((name, matrix), (rows, _)) in matrices.into_iter().zip(self.shapes()) {
            if matrix.ld < rows.max(1) {
                return Err(format!(
                    "leading dimension of {name}: expected {rows} or more, got {}",
                    matrix.ld
                ));
            }
        }
        Ok(())
    }

    /// Makes the products. Sums are in f64 for f64 and else in f32, rounded once at the end.
    ///
    /// # Errors
    /// An operand isn't all in one block, is not aligned, or is written by two at once.
    pub(crate) fn run(&self, memory: &Memory) -> Result<(), Fault> {
        if self.m == 0 || self.n == 0 || self.batch == 0 {
            return Ok(());
        }
        // Until the last product is made, so that no operand is freed or written meanwhile.
        let _turn = memory.hold();
        let [shape_a, shape_b, shape_c] = self.shapes();
        let written = self.extent(memory, "C", self.c, shape_c)?;
        if self.batch > 1 && self.batches_overlap() {
            return Err(Fault::new("matrices of the batch C overlap"));
        }
        // As cuBLAS has it, without alpha there are no factors.
        if self.k > 0 && self.alpha != 0. {
            for (name, matrix, shape) in [("A", self.a, shape_a), ("B", self.b, shape_b)] {
                let read = self.extent(memory, name, matrix, shape)?;
                if read.start < written.end && written.start < read.end {
                    return Err(Fault::new(format!("{name} and C overlap")));
                }
            }
        }
        let is_small = self.m * self.n * self.k < SMALL;
        let by_batch = self.batch > 1 && (is_small || self.batch >= rayon::current_num_threads());
        match by_batch {
            true => (0..self.batch)
                .into_par_iter()
                .with_min_len((SMALL / (self.m * self.n * self.k.max(1))).max(1))
                .for_each(|i| self.one(i, Parallelism::None)),
            false => {
                let threads = if is_small { Parallelism::None } else { Parallelism::Rayon(0) };
                (0..self.batch).for_each(|i| self.one(i, threads));
            }
        }
        Ok(())
    }

    /// All addresses from the batch's first number to its last; an error where they aren't of one block.
    fn extent(
        &self,
        memory: &Memory,
        name: &str,
        matrix: Matrix,
        (rows, columns): (usize, usize),
    ) -> Result<std::ops::Range<u64>, Fault> {
        let size = matrix.number.bytes();
        let place = || {
            format!(
                "{name} of {} matrices ({rows}, {columns}) of {:?}, leading dimension {}, stride {}",
                self.batch, matrix.number, matrix.ld, matrix.stride
            )
        };
        if !matrix.address.is_multiple_of(size as u64) {
            return Err(Fault::of_alignment("not aligned").at(place()));
        }
        let last_column = (columns - 1).checked_mul(matrix.ld);
        let last_matrix = (self.batch - 1).checked_mul(matrix.stride);
        let bytes = last_column
            .and_then(|column| {
                column.checked_add(rows)?.checked_add(last_matrix?)?.checked_mul(size)
            })
            .ok_or_else(|| Fault::of_address("more bytes than there are").at(place()))?;
        memory.block(matrix.address, bytes).map_err(|fault| fault.at(place()))?;
        Ok(matrix.address..matrix.address + bytes as u64)
    }

    /// Whether two matrices of C share a number, for all that is simple: one after another, or beside each other in each column.
    fn batches_overlap(&self) -> bool {
        let one = (self.n - 1) * self.c.ld + self.m;
        let is_apart = self.c.stride >= one;
        let is_beside = self.c.stride >= self.m
            && self
                .c
                .stride
                .checked_mul(self.batch - 1)
                .is_some_and(|far| far + self.m <= self.c.ld);
        !(is_apart || is_beside)
    }

    /// The product `i` of the batch, whose operands were checked.
    fn one(&self, i: usize, threads: Parallelism) {
        let place = |matrix: Matrix| {
            pointer(matrix.address + (i * matrix.stride * matrix.number.bytes()) as u64)
        };
        let (a, b, c) = (place(self.a), place(self.b), place(self.c));
        let strides = |matrix: Matrix, is_transposed| match is_transposed {
            true => (1, matrix.ld as isize),
            false => (matrix.ld as isize, 1),
        };
        // From a column to the next, from a row to the next.
        let from = (strides(self.a, self.is_transposed[0]), strides(self.b, self.is_transposed[1]));
        let ld = self.c.ld as isize;
        match (self.a.number, self.c.number) {
            // SAFETY: all that the strides reach was checked to be of one block, and it is this product's turn.
            (Number::F64, _) => unsafe {
                self.plain::<f64>(
                    (a.cast(), b.cast(), c.cast()),
                    from,
                    ld,
                    (self.alpha, self.beta),
                    threads,
                );
            },
            // SAFETY: the same.
            (Number::F32, _) => unsafe {
                let factors = (self.alpha as f32, self.beta as f32);
                self.plain::<f32>((a.cast(), b.cast(), c.cast()), from, ld, factors, threads);
            },
            // SAFETY: the same.
            _ => unsafe { self.through_f32((a, b, c), from, threads) },
        }
    }

    /// # Safety
    /// All numbers that the strides reach can be read, and those of C written.
    unsafe fn plain<T: Real>(
        &self,
        (a, b, c): (*const T, *const T, *mut T),
        ((a_column, a_row), (b_column, b_row)): ((isize, isize), (isize, isize)),
        ld: isize,
        (alpha, beta): (T, T),
        threads: Parallelism,
    ) {
        let zero = T::default();
        if self.k == 0 || alpha == zero {
            for at in (0..self.n).flat_map(|j| (0..self.m).map(move |i| j * ld as usize + i)) {
                // SAFETY: a number of C.
                unsafe {
                    let place = c.add(at);
                    place.write(if beta == zero { zero } else { beta * place.read() });
                }
            }
            return;
        }
        // SAFETY: the caller's promise; `gemm` names the factor of the result alpha, and that of the product beta.
        unsafe {
            gemm::gemm(
                self.m,
                self.n,
                self.k,
                c,
                ld,
                1,
                beta != zero,
                a,
                a_column,
                a_row,
                b,
                b_column,
                b_row,
                beta,
                alpha,
                false,
                false,
                false,
                threads,
            );
        }
    }

    /// Factors of a half type, to a result of it or of f32.
    ///
    /// # Safety
    /// As of [`Product::plain`].
    unsafe fn through_f32(
        &self,
        (a, b, c): (*mut u8, *mut u8, *mut u8),
        (from_a, from_b): ((isize, isize), (isize, isize)),
        threads: Parallelism,
    ) {
        let (m, n, k) = (self.m, self.n, self.k);
        // Columns one after another.
        let mut sums = vec![0f32; m * n];
        if k > 0 && self.alpha != 0. {
            // SAFETY: the caller's promise.
            let (a, b) = unsafe {
                (wide(self.a.number, a, (m, k), from_a), wide(self.b.number, b, (k, n), from_b))
            };
            let one =
                Self { a: packed(self.a, m), b: packed(self.b, k), c: packed(self.c, m), ..*self };
            let strides = ((m as isize, 1), (k as isize, 1));
            // SAFETY: the three have all numbers of their sizes.
            unsafe {
                let places = (a.as_ptr(), b.as_ptr(), sums.as_mut_ptr());
                one.plain::<f32>(places, strides, m as isize, (1., 0.), threads);
            }
        }
        let (alpha, beta) = (self.alpha as f32, self.beta as f32);
        for (j, column) in sums.chunks_exact(m).enumerate() {
            for (i, sum) in column.iter().enumerate() {
                let at = j * self.c.ld + i;
                // SAFETY: a number of C.
                unsafe {
                    let old = if beta == 0. { 0. } else { beta * read(self.c.number, c, at) };
                    write(self.c.number, c, at, alpha * sum + old);
                }
            }
        }
    }
}

fn packed(matrix: Matrix, rows: usize) -> Matrix {
    Matrix { ld: rows, ..matrix }
}

/// What products are made in.
trait Real: Copy + Default + PartialEq + std::ops::Mul<Output = Self> + Send + Sync + 'static {}
impl Real for f32 {}
impl Real for f64 {}

/// A matrix in f32, columns one after another.
///
/// # Safety
/// All numbers that the strides reach can be read.
unsafe fn wide(
    number: Number,
    from: *const u8,
    (rows, columns): (usize, usize),
    (column, row): (isize, isize),
) -> Vec<f32> {
    let mut to = Vec::with_capacity(rows * columns);
    for j in 0..columns {
        // SAFETY: the caller's promise.
        to.extend(
            (0..rows)
                .map(|i| unsafe { read(number, from, j * column as usize + i * row as usize) }),
        );
    }
    to
}

/// # Safety
/// The number can be read.
unsafe fn read(number: Number, from: *const u8, at: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        match number {
            Number::F16 => f16::from_bits(from.cast::<u16>().add(at).read()).to_f32(),
            Number::Bf16 => bf16::from_bits(from.cast::<u16>().add(at).read()).to_f32(),
            Number::F32 => from.cast::<f32>().add(at).read(),
            Number::F64 => from.cast::<f64>().add(at).read() as f32,
        }
    }
}

/// # Safety
/// The number can be written.
unsafe fn write(number: Number, to: *mut u8, at: usize, value: f32) {
    // SAFETY: the caller's promise.
    unsafe {
        match number {
            Number::F16 => to.cast::<u16>().add(at).write(f16::from_f32(value).to_bits()),
            Number::Bf16 => to.cast::<u16>().add(at).write(bf16::from_f32(value).to_bits()),
            Number::F32 => to.cast::<f32>().add(at).write(value),
            Number::F64 => to.cast::<f64>().add(at).write(f64::from(value)),
        }
    }
}
