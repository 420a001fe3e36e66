//! The three maps where there are no kernels, from plain tensor ops alone: products of matrices, and nothing `n x n`.
//!
//! All is in f64, so that the laws hold as they do on the CPU. The `k x k` cores are inverted by products too, without a
//! factorisation. How many of them it takes is decided by a norm, the one number that a pass copies to the host. The tape
//! is candle's own.

use super::common::{check, strict_lower};
use candle_core::{D, DType, Device, Result, Tensor, bail};

/// Steps after which Newton's iteration has squared away what is left of its error, for condition one.
const SPARE: usize = 7;

/// Terms of the series of φ₁ at arguments of norm at most 1/2: 2^-17 / 18! is below the rounding of f64.
const TERMS: u32 = 16;

/// The parameter in f64, what is not read replaced by zero, and its sizes.
fn lower(op: &'static str, raw: &Tensor) -> Result<(Tensor, usize, usize)> {
    check(op, raw)?;
    let (n, k) = (raw.dim(D::Minus2)?, raw.dim(D::Minus1)?);
    Ok((strict_lower(raw)?.to_dtype(DType::F64)?, n, k))
}

fn transposed(xs: &Tensor) -> Result<Tensor> {
    xs.transpose(D::Minus2, D::Minus1)?.contiguous()
}

fn unit(rows: usize, columns: usize, like: &Tensor) -> Result<Tensor> {
    let values = (0..rows * columns).map(|at| f64::from(u8::from(at / columns == at % columns)));
    Tensor::from_vec(values.collect(), (rows, columns), like.device())
}

/// The largest value over a batch, on the host.
fn largest(op: &str, xs: &Tensor) -> Result<f64> {
    match xs.detach().flatten_all()?.max(0)?.to_device(&Device::Cpu)?.to_scalar::<f64>()? {
        norm if norm.is_finite() => Ok(norm),
        norm => bail!("{op}: expected finite entries below the diagonal, got a norm of {norm}"),
    }
}

/// The inverse of `(.., k, k)` matrices whose symmetric part is at least the identity.
///
/// Newton's iteration `X <- X (2 - A X)` from `Aᵀ / (‖A‖₁ ‖A‖∞)` (Ben-Israel and Cohen, SIAM J. Numer. Anal. 3(3), 1966),
/// off the tape but for the last step, whose derivative at the inverse is the inverse's own.
fn inverse(op: &str, a: &Tensor) -> Result<Tensor> {
    let fixed = a.detach();
    let size = fixed.abs()?;
    let columns = size.sum_keepdim(D::Minus2)?.max_keepdim(D::Minus1)?;
    let rows = size.sum_keepdim(D::Minus1)?.max_keepdim(D::Minus2)?;
    let norms = (columns * rows)?;
    let steps = largest(op, &norms)?.max(1.).log2().ceil() as usize + SPARE;
    let mut x = transposed(&fixed)?.broadcast_div(&norms)?;
    for _ in 1..steps {
        x = ((&x * 2.)? - x.matmul(&fixed.matmul(&x)?)?)?;
    }
    (&x * 2.)? - x.matmul(&a.matmul(&x)?)?
}

/// The inverse of upper triangular `(.., k, k)` matrices, by halves: blocks that are inverted already are joined in pairs,
/// all pairs at a time.
fn inverse_upper(a: &Tensor) -> Result<Tensor> {
    let k = a.dim(D::Minus1)?;
    let diagonal = unit(k, k, a)?;
    // Ones beside the diagonal keep the division defined.
    let rest = diagonal.affine(-1., 1.)?;
    let own = a.broadcast_mul(&diagonal)?.broadcast_add(&rest)?.recip()?;
    let mut x = own.broadcast_mul(&diagonal)?;
    let mut size = 1;
    while size < k {
        let pairs = |at: usize| {
            let (i, j) = (at / k / size, at % k / size);
            u8::from(i % 2 == 0 && j == i + 1)
        };
        let pairs = Tensor::from_vec((0..k * k).map(pairs).collect(), (k, k), a.device())?;
        let between = a.broadcast_mul(&pairs.to_dtype(a.dtype())?)?;
        x = (&x - x.matmul(&between.matmul(&x)?)?)?;
        size *= 2;
    }
    Ok(x)
}

/// `[2M - I; C M]` with `M = (I - B/2 + CᵀC/4)⁻¹`, as the CPU's Schur form.
pub(super) fn cayley(raw: &Tensor) -> Result<Tensor> {
    let (lower, n, k) = lower("cayley", raw)?;
    let eye = unit(k, k, &lower)?;
    let top = lower.narrow(D::Minus2, 0, k)?.contiguous()?;
    let half = ((&top - transposed(&top)?)? * -0.5)?;
    let core = half.broadcast_add(&eye)?;
    if n == k {
        let m = inverse("cayley", &core)?;
        return (m * 2.)?.broadcast_sub(&eye)?.to_dtype(raw.dtype());
    }
    let c = lower.narrow(D::Minus2, k, n - k)?.contiguous()?;
    let m = inverse("cayley", &(core + (transposed(&c)?.matmul(&c)? * 0.25)?)?)?;
    let below = c.matmul(&m)?;
    Tensor::cat(&[&(m * 2.)?.broadcast_sub(&eye)?, &below], D::Minus2)?.to_dtype(raw.dtype())
}

/// `E - V T V₁ᵀ` with the compact form of the product (Schreiber and Van Loan, SIAM J. Sci. Stat. Comput. 10(1), 1989):
/// `T⁻¹` is the upper triangle of `VᵀV` with half its diagonal.
pub(super) fn householder_product(raw: &Tensor) -> Result<Tensor> {
    let (lower, n, k) = lower("householder_product", raw)?;
    let e = unit(n, k, &lower)?;
    let v = lower.broadcast_add(&e)?;
    let length = v.sqr()?.sum_keepdim(D::Minus2)?.sqrt()?;
    // Unit columns: the diagonal of VᵀV is one.
    let v = v.broadcast_div(&length)?;
    let half = |at: usize| match (at / k).cmp(&(at % k)) {
        std::cmp::Ordering::Less => 1.,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Greater => 0f64,
    };
    let upper = Tensor::from_vec((0..k * k).map(half).collect(), (k, k), v.device())?;
    let t = inverse_upper(&transposed(&v)?.matmul(&v)?.broadcast_mul(&upper)?)?;
    let top = transposed(&v.narrow(D::Minus2, 0, k)?)?;
    v.matmul(&t.matmul(&top)?)?.neg()?.broadcast_add(&e)?.to_dtype(raw.dtype())
}

/// `E + U φ₁(WᵀU) WᵀE` with the skew matrix `K = U Wᵀ`, `U = [L, -sE]` and `W = [E, L/s]`, for any `s`: the one that
/// makes both about as large as `K`.
pub(super) fn matrix_exp(raw: &Tensor) -> Result<Tensor> {
    const OP: &str = "matrix_exp";
    let (lower, n, k) = lower(OP, raw)?;
    let e = unit(n, k, &lower)?.broadcast_as(lower.shape())?.contiguous()?;
    let eye = unit(k, k, &lower)?;
    let fixed = lower.detach();
    let s = fixed.sqr()?.sum_keepdim(D::Minus1)?.sum_keepdim(D::Minus2)?.sqrt()?.maximum(1.)?;
    let top = lower.narrow(D::Minus2, 0, k)?.contiguous()?;
    let square = top.zeros_like()?.broadcast_add(&eye)?;
    let gram = transposed(&lower)?.matmul(&lower)?.broadcast_div(&s)?;
    let turned = transposed(&top)?;
    let inner = Tensor::cat(
        &[
            &Tensor::cat(&[&top, &square.broadcast_mul(&s)?.neg()?], D::Minus1)?,
            &Tensor::cat(&[&gram, &turned.neg()?], D::Minus1)?,
        ],
        D::Minus2,
    )?;
    let norm = largest(OP, &inner.detach().abs()?.sum(D::Minus1)?)?;
    let doublings = (2. * norm).max(1.).log2().ceil();
    let inner = (inner * (-doublings).exp2())?;
    let whole = unit(2 * k, 2 * k, &lower)?;
    let mut phi = inner.zeros_like()?.broadcast_add(&whole)?;
    for term in (2..=TERMS + 1).rev() {
        phi = (inner.matmul(&phi)? / f64::from(term))?.broadcast_add(&whole)?;
    }
    let mut exp = inner.matmul(&phi)?.broadcast_add(&whole)?;
    for left in (0..doublings as usize).rev() {
        // φ₁(2z) = (exp(z) + 1) φ₁(z) / 2
        phi = (exp.broadcast_add(&whole)?.matmul(&phi)? * 0.5)?;
        if left > 0 {
            exp = exp.matmul(&exp)?;
        }
    }
    let start = Tensor::cat(&[&square, &turned.broadcast_div(&s)?], D::Minus2)?;
    let u = Tensor::cat(&[&lower, &e.broadcast_mul(&s)?.neg()?], D::Minus1)?;
    (u.matmul(&phi.matmul(&start)?)? + e)?.to_dtype(raw.dtype())
}

#[cfg(test)]
mod tests {
    use super::{cayley, householder_product, inverse, inverse_upper, matrix_exp};
    use crate::stiefel_residual;
    use candle_core::{DType, Device, Result, Tensor};
    use vkd_testkit::{Tolerance, assert_close, gradcheck, normal, normal_scaled};

    type Map = fn(&Tensor) -> Result<Tensor>;

    const MAPS: [(&str, Map, Map); 3] = [
        ("cayley", cayley, crate::cayley),
        ("householder", householder_product, crate::householder_product),
        ("matrix_exp", matrix_exp, crate::matrix_exp),
    ];

    #[test]
    fn the_device_paths_are_the_cpu_s_maps() -> Result<()> {
        for (name, device, cpu) in MAPS {
            for dims in [vec![1, 1], vec![5, 1], vec![8, 8], vec![67, 33], vec![3, 21, 10]] {
                for (scale, digits) in [(1e-4, 1e-13), (0.3, 1e-12), (1., 1e-11)] {
                    let raw = normal_scaled(&dims, DType::F64, 1, scale)?;
                    let (got, want) = (device(&raw)?, cpu(&raw)?);
                    let what = format!("{name} {dims:?} at {scale}");
                    assert_close(&what, &got, &want, Tolerance::relative(digits))?;
                    assert!(
                        stiefel_residual(&got)? <= 1e-12,
                        "{what}: {}",
                        stiefel_residual(&got)?
                    );
                    for (dtype, limit) in [(DType::F32, 1e-6), (DType::BF16, 2f64.powi(-7))] {
                        let rounded = device(&raw.to_dtype(dtype)?)?;
                        assert_eq!(rounded.dtype(), dtype);
                        let residual = stiefel_residual(&rounded)?;
                        assert!(residual <= limit, "{what} {dtype:?}: {residual}");
                    }
                }
            }
            let zero = Tensor::zeros((6, 3), DType::F64, &Device::Cpu)?;
            assert_close(name, &device(&zero)?, &cpu(&zero)?, Tolerance::EXACT)?;
            // What is not read may be anything.
            let mut rows = vec![vec![f64::NAN; 3]; 5];
            (0..5).for_each(|i| (0..i.min(3)).for_each(|j| rows[i][j] = 0.1 * (i + j) as f64));
            let raw = Tensor::new(rows, &Device::Cpu)?;
            assert_close(name, &device(&raw)?, &cpu(&raw)?, Tolerance::relative(1e-13))?;
        }
        Ok(())
    }

    #[test]
    fn large_parameters_stay_on_the_manifold() -> Result<()> {
        for (name, device, _) in MAPS {
            // Each doubling of the exponential's argument doubles its rounding: it is in proportion to the norm, which is
            // about 13 times the scale; a margin of ten on eps.
            let law = |scale: f64| if name == "matrix_exp" { 3e-14 * scale } else { 1e-13 };
            for scale in [20f64, 300., 3000., 3e4] {
                let raw = normal_scaled(&[40, 12], DType::F64, 2, scale)?;
                let residual = stiefel_residual(&device(&raw)?)?;
                assert!(residual <= law(scale), "{name} at {scale}: {residual}");
            }
            let broken = Tensor::full(f64::INFINITY, (4, 2), &Device::Cpu)?;
            let said = device(&broken);
            assert!(name == "householder" || said.is_err(), "{name}");
        }
        Ok(())
    }

    #[test]
    fn gradients_are_those_of_differences() -> Result<()> {
        for (name, device, cpu) in MAPS {
            for dims in [vec![4, 4], vec![7, 3], vec![2, 9, 4]] {
                let raw = normal_scaled(&dims, DType::F64, 3, 0.5)?;
                gradcheck(|x| device(&x[0]), std::slice::from_ref(&raw))?;
                // And the CPU's own.
                let var = candle_core::Var::from_tensor(&raw)?;
                let g = normal(&dims, DType::F64, 4)?;
                let grad = |map: Map| -> Result<Tensor> {
                    let grads = (map(&var)? * &g)?.sum_all()?.backward()?;
                    Ok(grads.get(&var).unwrap().clone())
                };
                assert_close(name, &grad(device)?, &grad(cpu)?, Tolerance::relative(1e-10))?;
            }
        }
        Ok(())
    }

    #[test]
    fn inverses_are_inverses() -> Result<()> {
        let eye = |k| Tensor::eye(k, DType::F64, &Device::Cpu);
        for k in [1, 2, 3, 31, 64, 65] {
            let a = normal(&[k, k], DType::F64, 5)?;
            let square = (a.t()?.matmul(&a)? + eye(k)?)?;
            let core = (square + (&a - a.t()?)?)?;
            let got = inverse("test", &core)?.matmul(&core)?;
            assert_close("inverse", &got, &eye(k)?, Tolerance::relative(1e-10))?;
            let mask: Vec<f64> =
                (0..k * k).map(|at| f64::from(u8::from(at / k < at % k))).collect();
            let mask = Tensor::from_vec(mask, (k, k), &Device::Cpu)?;
            let upper = ((a * mask)? * 0.2)?.broadcast_add(&(eye(k)? * 1.5)?)?;
            let got = inverse_upper(&upper)?.matmul(&upper)?;
            assert_close("upper", &got, &eye(k)?, Tolerance::relative(1e-10))?;
        }
        Ok(())
    }
}
