//! Plain dense f64 linear algebra on `Vec`s: slow, obvious, and sharing no code with what it checks.
//!
//! Matrices are row-major slices with their sizes beside them.

use candle_core::{DType, Result, Tensor, bail};

/// Transpose of a row-major `rows x cols` matrix.
pub fn transpose(a: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    let mut t = vec![0.; a.len()];
    for i in 0..rows {
        for j in 0..cols {
            t[j * rows + i] = a[i * cols + j];
        }
    }
    t
}

/// Product of row-major `m x k` and `k x n` matrices.
pub fn matmul(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
    let mut c = vec![0.; m * n];
    for i in 0..m {
        for l in 0..k {
            let x = a[i * k + l];
            for j in 0..n {
                c[i * n + j] += x * b[l * n + j];
            }
        }
    }
    c
}

/// Solves `A X = B` for `n x n` A and `n x m` B by Gaussian elimination with partial pivoting.
pub fn solve(a: &[f64], b: &[f64], n: usize, m: usize) -> Result<Vec<f64>> {
    let (mut a, mut x) = (a.to_vec(), b.to_vec());
    for c in 0..n {
        let pivot =
            (c..n).max_by(|&i, &j| a[i * n + c].abs().total_cmp(&a[j * n + c].abs())).unwrap_or(c);
        if a[pivot * n + c] == 0. {
            bail!("solve: expected a regular matrix, got a zero pivot in column {c} of {n}")
        }
        for j in 0..n {
            a.swap(c * n + j, pivot * n + j);
        }
        for j in 0..m {
            x.swap(c * m + j, pivot * m + j);
        }
        for i in c + 1..n {
            let f = a[i * n + c] / a[c * n + c];
            for j in c..n {
                a[i * n + j] -= f * a[c * n + j];
            }
            for j in 0..m {
                x[i * m + j] -= f * x[c * m + j];
            }
        }
    }
    for c in (0..n).rev() {
        for j in 0..m {
            let known: f64 = (c + 1..n).map(|l| a[c * n + l] * x[l * m + j]).sum();
            x[c * m + j] = (x[c * m + j] - known) / a[c * n + c];
        }
    }
    Ok(x)
}

/// Largest `|QᵀQ - I|` (tall or square) or `|QQᵀ - I|` (wide) over all matrices of `(.., n, k)`, computed in f64.
pub fn gram_residual(q: &Tensor) -> Result<f64> {
    let (n, k) = match q.dims() {
        [.., n, k] => (*n, *k),
        dims => bail!("gram_residual: expected (.., n, k), got {dims:?}"),
    };
    if q.elem_count() == 0 {
        return Ok(0.);
    }
    let q = q.to_dtype(DType::F64)?.contiguous()?.reshape(((), n, k))?;
    let mut worst = 0f64;
    for i in 0..q.dim(0)? {
        let q = q.get(i)?;
        // candle's product: the largest frames are too much for three plain loops, and no op under test calls it.
        let gram = if n >= k { q.t()?.matmul(&q)? } else { q.matmul(&q.t()?)? };
        let size = n.min(k);
        for (at, x) in crate::to_f64(&gram)?.into_iter().enumerate() {
            let d = (x - f64::from(u8::from(at / size == at % size))).abs();
            worst = if d.is_nan() { f64::INFINITY } else { worst.max(d) };
        }
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_matrix_has_no_residual() -> Result<()> {
        let empty = Tensor::zeros((2, 0, 3), candle_core::DType::F32, &candle_core::Device::Cpu)?;
        assert_eq!(gram_residual(&empty)?, 0.);
        Ok(())
    }

    #[test]
    fn the_residual_is_the_plain_sum() -> Result<()> {
        for (n, k) in [(7, 3), (3, 7), (5, 5)] {
            let q = crate::normal(&[2, n, k], DType::F64, 1)?;
            let mut want = 0f64;
            for q in crate::to_f64(&q)?.chunks(n * k) {
                let (q, n, k) =
                    if n >= k { (q.to_vec(), n, k) } else { (transpose(q, n, k), k, n) };
                for (at, x) in matmul(&transpose(&q, n, k), &q, k, n, k).iter().enumerate() {
                    want = want.max((x - f64::from(u8::from(at / k == at % k))).abs());
                }
            }
            assert!((gram_residual(&q)? - want).abs() <= 1e-13 * want);
        }
        let nan = Tensor::new(&[[1f32, f32::NAN]], &candle_core::Device::Cpu)?;
        assert_eq!(gram_residual(&nan)?, f64::INFINITY);
        Ok(())
    }

    #[test]
    fn solve_inverts_matmul() -> Result<()> {
        let a = [2., 1., 0., 1., 3., 1., 0., 1., 4.];
        let x = [1., 2., 3., 4., 5., 6.];
        let solved = solve(&a, &matmul(&a, &x, 3, 3, 2), 3, 2)?;
        assert!(solved.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-14));
        assert!(solve(&[0.; 4], &[1.; 2], 2, 1).is_err());
        Ok(())
    }
}
