//! What blending launches on a device: one kernel for many tensors.

use candle_core::{DType, Result};
use vkd_norm::program::{Program, Size, Word, suffix};

const OP: &str = "blend";

/// Of what is written in place and what is taken in, one after the other of each pair; `dtype` is that of what is taken in. Each pair has
/// its number of entries and both factors.
pub(super) fn blend(dtype: DType, pairs: &[(usize, f64, f64)]) -> Result<Program> {
    let mut program = Program::default();
    let mut words = Vec::with_capacity(5 * pairs.len());
    for (i, (entries, keep, take)) in pairs.iter().enumerate() {
        words.extend([Word::InPlace(2 * i), Word::Input(2 * i + 1), Word::U64(*entries as u64)]);
        words.extend([Word::F64(*keep), Word::F64(*take)]);
    }
    let most = pairs.iter().map(|(entries, ..)| *entries).max().unwrap_or(0);
    let table = program.table(words);
    let size = Size::many(most, pairs.len());
    program.launch(format!("{OP}_{}", suffix(OP, dtype)?), size, &[table])?;
    Ok(program)
}
