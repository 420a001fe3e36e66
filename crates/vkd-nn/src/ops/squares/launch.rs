//! What sums of squares launch on a device: two kernels for many tensors.

use candle_core::{DType, Result};
use vkd_norm::program::{Arg, Program, Size, Word, suffix};

const OP: &str = "squares";

/// Of tensors of one dtype with so many `entries` each; buffer 0 is the sum of each, in f64.
pub(super) fn squares(dtype: DType, entries: &[usize]) -> Result<Program> {
    let mut program = Program::default();
    let words = entries.iter().enumerate();
    let words = words.flat_map(|(i, n)| [Word::Input(i), Word::U64(*n as u64)]).collect();
    let size = Size::many(entries.iter().copied().max().unwrap_or(0), entries.len());
    let blocks = size.grid[0];
    let sums = program.buffer(DType::F64, entries.len());
    let parts = program.buffer(DType::F64, entries.len() * blocks);
    let table = program.table(words);
    program.launch(format!("{OP}_{}", suffix(OP, dtype)?), size, &[table, parts])?;
    let join = Size { grid: [entries.len(), 1, 1], ..Size::join(blocks) };
    program.launch(format!("{OP}_join"), join, &[parts, sums, Arg::U32(blocks as u32)])?;
    Ok(program)
}
