//! Slices in, slices out.

use crate::ops::{Real, for_chunks};

/// The wanted rows, one after the other.
pub(super) fn gather<T>(table: &[T], wanted: &[usize], width: usize) -> Vec<T>
where
    T: Copy + Default + Send + Sync,
{
    let mut out = vec![T::default(); wanted.len() * width];
    for_chunks(&mut out, width, |i, row| {
        row.copy_from_slice(&table[wanted[i] * width..][..width]);
    });
    out
}

/// Sums of the rows of `grad` by the row of the table that each came from.
pub(super) fn scatter<T: Real>(grad: &[T], wanted: &[usize], rows: usize, width: usize) -> Vec<T> {
    // Each task owns a range of the table and looks through all places, so every row is summed in the order of its places.
    const TASKS: usize = 16;
    let per_task = rows.div_ceil(TASKS).max(1);
    let mut table = vec![T::zero(); rows * width];
    for_chunks(&mut table, per_task * width, |task, part| {
        let first = task * per_task;
        for (place, &row) in wanted.iter().enumerate() {
            let Some(row) = row.checked_sub(first).filter(|row| row * width < part.len()) else {
                continue;
            };
            let sums = &mut part[row * width..(row + 1) * width];
            sums.iter_mut().zip(&grad[place * width..]).for_each(|(sum, &g)| *sum += g);
        }
    });
    table
}
