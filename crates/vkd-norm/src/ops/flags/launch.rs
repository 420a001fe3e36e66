//! What a check of values launches on a device.

use crate::ops::program::{Arg, Program, Size, count, suffix};
use candle_core::{DType, Result};

/// Of values and of the word, a u32, in which `bit` is set where a value is outside of `low` to `high`, or NaN.
pub(super) fn outside(
    dtype: DType,
    entries: usize,
    [low, high]: [f64; 2],
    bit: u32,
) -> Result<Program> {
    const OP: &str = "flags";
    let end = if dtype == DType::U32 { "u32" } else { suffix(OP, dtype)? };
    let mut program = Program::default();
    let args = [
        Arg::Input(0),
        Arg::Input(1),
        count(OP, entries)?,
        Arg::F64(low),
        Arg::F64(high),
        Arg::U32(bit),
    ];
    program.launch(format!("outside_{end}"), Size::sums(entries), &args)?;
    Ok(program)
}
