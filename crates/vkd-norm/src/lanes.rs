//! Loops over rows that the compiler turns into vector code, with sums whose order is fixed.
//!
//! Public for vkd-loss and vkd-nn, which share it; no part of the stable interface.

use crate::dense::Real;

/// Places that are taken at a time where each has its own sum.
const WIDTH: usize = 16;

/// Runs `f` compiled for the widest vectors that both the kernels and this machine know (AVX2 on x86-64).
///
/// What `f` calls must be `#[inline(always)]`, else it stays at the baseline. Multiply and add are never contracted, so
/// with a fixed number of lanes the bits are the same on every machine.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Sums of the `K` numbers that `f` makes of the entries at each place of `rows`, which have one length.
///
/// Each sum runs in `LANES` lanes, a power of two; with AVX2 the registers hold 128 lanes of f32, less what `f` needs.
#[inline(always)]
pub fn sums<T: Real, const B: usize, const K: usize, const LANES: usize>(
    rows: [&[T]; B],
    f: impl Fn([T; B]) -> [T; K],
) -> [f64; K] {
    // Plain loops: array::map is not always inlined.
    let mut lanes = [[T::zero(); LANES]; K];
    let whole = rows[0].len() / LANES;
    for c in 0..whole {
        let mut entries = [[T::zero(); LANES]; B];
        for b in 0..B {
            entries[b].copy_from_slice(&rows[b][c * LANES..(c + 1) * LANES]);
        }
        for i in 0..LANES {
            let mut entry = [T::zero(); B];
            for b in 0..B {
                entry[b] = entries[b][i];
            }
            let terms = f(entry);
            for k in 0..K {
                lanes[k][i] += terms[k];
            }
        }
    }
    for i in whole * LANES..rows[0].len() {
        let mut entry = [T::zero(); B];
        for b in 0..B {
            entry[b] = rows[b][i];
        }
        let terms = f(entry);
        for k in 0..K {
            lanes[k][i - whole * LANES] += terms[k];
        }
    }
    lanes.map(total)
}

/// Sum of the lanes by halving: few roundings, and a shape that vectorises.
#[inline(always)]
fn total<T: Real, const LANES: usize>(mut lanes: [T; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            let upper = lanes[i + half];
            lanes[i] += upper;
        }
        half /= 2;
    }
    lanes[0].wide()
}

/// Adds to each of the `K` sums, at every place, what `f` makes of the entries of `rows` there.
#[inline(always)]
pub fn accumulate<T: Real, const K: usize, const N: usize>(
    sums: [&mut [T]; K],
    rows: [&[T]; N],
    f: impl Fn([T; N]) -> [T; K],
) {
    // Plain loops and arrays by value: array::map is not always inlined, and the compiler need not ask whether sums and
    // rows overlap.
    let whole = rows[0].len() / WIDTH;
    for c in 0..whole {
        let at = c * WIDTH..(c + 1) * WIDTH;
        let mut entries = [[T::zero(); WIDTH]; N];
        for n in 0..N {
            entries[n].copy_from_slice(&rows[n][at.clone()]);
        }
        let mut added = [[T::zero(); WIDTH]; K];
        for i in 0..WIDTH {
            let mut entry = [T::zero(); N];
            for n in 0..N {
                entry[n] = entries[n][i];
            }
            let terms = f(entry);
            for k in 0..K {
                added[k][i] = terms[k];
            }
        }
        for k in 0..K {
            for (sum, term) in sums[k][at.clone()].iter_mut().zip(added[k]) {
                *sum += term;
            }
        }
    }
    for i in whole * WIDTH..rows[0].len() {
        let mut entry = [T::zero(); N];
        for n in 0..N {
            entry[n] = rows[n][i];
        }
        let terms = f(entry);
        for k in 0..K {
            sums[k][i] += terms[k];
        }
    }
}
