//! Whether the base has been overwritten, and its reflectors anew, on a device: nothing of it comes to the host.

use candle_core::{DType, Result};
use vkd_norm::program::{Arg, Program, Size, Word, count, suffix};

const OP: &str = "stiefel base";

/// Compares input 0, the base, with input 1, what it was; and from the base makes inputs 1 to 5 anew, in place, if they differ: the
/// base as it was, the reflectors, their core, the signs and the state. See [`Resident`](crate::base::Resident).
///
/// `limits`: what is orthonormal to rounding, and what is orthonormal at all.
pub(crate) fn renewal(
    dtype: DType,
    (n, k): (usize, usize),
    [rounding, limit]: [f64; 2],
) -> Result<Program> {
    let end = suffix(OP, dtype)?;
    let entries = count(OP, n * k)?;
    let mut program = Program::default();
    let size = Size::sums(n * k);
    let parts = program.buffer(DType::U32, size.grid[0]);
    let upper = program.buffer(DType::F64, k * k);
    let table = program.table((1..6).map(Word::InPlace).collect());
    let args = [Arg::Input(0), Arg::Input(1), parts, entries];
    program.launch(format!("base_compare_{end}"), size, &args)?;
    let sizes = [count(OP, n)?, count(OP, k)?, count(OP, size.grid[0])?];
    let limits = [rounding, limit].map(Arg::F64);
    let args = [&[Arg::Input(0), parts, table, upper][..], &sizes, &limits].concat();
    program.launch(format!("base_renew_{end}"), Size::join(n), &args)?;
    Ok(program)
}
