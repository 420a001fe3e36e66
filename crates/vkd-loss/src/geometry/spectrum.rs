//! Eigenvalues of a symmetric matrix: Householder reflections to three diagonals, then bisection by signs.

/// Eigenvalues of the symmetric row-major `n x n` matrix, ascending, to about 1e-15 of the largest magnitude.
pub(super) fn eigenvalues(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    let (diagonal, beside) = tridiagonal(&mut a, n);
    let squares: Vec<f64> = beside.iter().map(|b| b * b).collect();
    // Gershgorin's circles hold all of them.
    let reach = |i: usize| {
        let left = if i > 0 { beside[i - 1].abs() } else { 0. };
        left + beside.get(i).map_or(0., |b| b.abs())
    };
    let low = (0..n).map(|i| diagonal[i] - reach(i)).fold(f64::INFINITY, f64::min);
    let high = (0..n).map(|i| diagonal[i] + reach(i)).fold(f64::NEG_INFINITY, f64::max);
    (0..n).map(|k| bisect(&diagonal, &squares, k, low, high)).collect()
}

/// Diagonal and the entries beside it, of a matrix with the same eigenvalues; `a` is overwritten.
fn tridiagonal(a: &mut [f64], n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut beside = Vec::with_capacity(n.saturating_sub(1));
    for k in 0..n.saturating_sub(1) {
        let below: Vec<f64> = (k + 1..n).map(|i| a[i * n + k]).collect();
        let length = below.iter().map(|x| x * x).sum::<f64>().sqrt();
        // The sign that adds to the first entry and does not cancel it.
        let entry = if below[0] > 0. { -length } else { length };
        beside.push(entry);
        let mut v = below;
        v[0] -= entry;
        let size = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        if size == 0. {
            continue;
        }
        v.iter_mut().for_each(|x| *x /= size);
        // (I − 2vvᵀ) A (I − 2vvᵀ) = A − 2vwᵀ − 2wvᵀ with w = Av − ⟨v, Av⟩ v.
        let part = |i: usize| (k + 1 + i) * n + k + 1..(k + 2 + i) * n;
        let m = n - k - 1;
        let mut w: Vec<f64> =
            (0..m).map(|i| a[part(i)].iter().zip(&v).map(|(a, v)| a * v).sum()).collect();
        let middle: f64 = v.iter().zip(&w).map(|(v, w)| v * w).sum();
        w.iter_mut().zip(&v).for_each(|(w, v)| *w -= middle * v);
        for i in 0..m {
            let (vi, wi) = (2. * v[i], 2. * w[i]);
            for (a, (v, w)) in a[part(i)].iter_mut().zip(v.iter().zip(&w)) {
                *a -= vi * w + wi * v;
            }
        }
    }
    ((0..n).map(|i| a[i * n + i]).collect(), beside)
}

/// The eigenvalue with `k` below it.
fn bisect(diagonal: &[f64], squares: &[f64], k: usize, mut low: f64, mut high: f64) -> f64 {
    loop {
        let middle = low + (high - low) / 2.;
        if middle <= low || middle >= high {
            return middle;
        }
        if below(diagonal, squares, middle) > k {
            high = middle;
        } else {
            low = middle;
        }
        if high - low <= f64::EPSILON * low.abs().max(high.abs()).max(f64::MIN_POSITIVE) {
            return low + (high - low) / 2.;
        }
    }
}

/// How many eigenvalues are below `x`: the negative pivots of the matrix less `x`.
fn below(diagonal: &[f64], squares: &[f64], x: f64) -> usize {
    let mut count = 0;
    let mut pivot = 1f64;
    for (i, d) in diagonal.iter().enumerate() {
        let square = if i > 0 { squares[i - 1] } else { 0. };
        // A pivot of zero is taken for a tiny positive one, which moves x by less than rounding.
        let last = if pivot.abs() < f64::MIN_POSITIVE { f64::MIN_POSITIVE } else { pivot };
        pivot = d - x - if square == 0. { 0. } else { square / last };
        count += usize::from(pivot < 0.);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::eigenvalues;
    use candle_core::{DType, Result};
    use vkd_testkit::{normal, to_f64};

    fn symmetric(n: usize, seed: u64) -> Result<Vec<f64>> {
        let a = normal(&[n, n], DType::F64, seed)?;
        to_f64(&(&a + a.t()?)?)
    }

    #[test]
    fn a_diagonal_is_its_own_spectrum() {
        let mut a = vec![0.; 16];
        for (i, x) in [3., -1., 0., 7.].into_iter().enumerate() {
            a[i * 5] = x;
        }
        for (got, want) in eigenvalues(a, 4).into_iter().zip([-1., 0., 3., 7.]) {
            assert!((got - want).abs() < 1e-14, "{got} {want}");
        }
        assert_eq!(eigenvalues(vec![4.], 1), [4.]);
        assert!(eigenvalues(vec![0.; 9], 3).iter().all(|x| x.abs() < 1e-300));
    }

    #[test]
    fn a_known_spectrum() {
        // The second difference: 2 − 2 cos(πj / (n + 1)).
        let n = 50;
        let mut a = vec![0.; n * n];
        for i in 0..n {
            a[i * n + i] = 2.;
            if i > 0 {
                (a[i * n + i - 1], a[(i - 1) * n + i]) = (-1., -1.);
            }
        }
        for (j, got) in eigenvalues(a, n).into_iter().enumerate() {
            let want = 2. - 2. * (std::f64::consts::PI * (j + 1) as f64 / (n + 1) as f64).cos();
            assert!((got - want).abs() < 1e-14, "{j}: {got} {want}");
        }
    }

    #[test]
    fn moments_are_traces_of_powers() -> Result<()> {
        for n in [1, 2, 3, 7, 40] {
            let a = symmetric(n, n as u64)?;
            let values = eigenvalues(a.clone(), n);
            assert!(values.is_sorted());
            let square = vkd_testkit::matmul(&a, &a, n, n, n);
            let trace = |m: &[f64]| (0..n).map(|i| m[i * n + i]).sum::<f64>();
            let fourth = vkd_testkit::matmul(&square, &square, n, n, n);
            for (power, want) in [(1, trace(&a)), (2, trace(&square)), (4, trace(&fourth))] {
                let got: f64 = values.iter().map(|x| x.powi(power)).sum();
                let size: f64 = values.iter().map(|x| x.abs().powi(power)).sum();
                assert!((got - want).abs() < 1e-12 * size, "{n} {power}: {got} {want}");
            }
        }
        Ok(())
    }
}
