//! Slices in, slices out.

use crate::ops::{Real, for_chunks};

/// Values of one task.
const CHUNK: usize = 1 << 14;

pub(super) fn keep<T: Real>(xs: &[T], kept: &[bool], run: usize, scale: T) -> Vec<T> {
    let mut ys = vec![T::zero(); xs.len()];
    if run == 1 {
        for_chunks(&mut ys, CHUNK, |i, ys| {
            let from = i * CHUNK;
            for ((y, &x), &kept) in ys.iter_mut().zip(&xs[from..]).zip(&kept[from..]) {
                *y = if kept { x * scale } else { T::zero() };
            }
        });
    } else {
        for_chunks(&mut ys, run, |i, ys| {
            if kept[i] {
                ys.iter_mut().zip(&xs[i * run..]).for_each(|(y, &x)| *y = x * scale);
            }
        });
    }
    ys
}
