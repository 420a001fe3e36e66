//! The laws one by one, for one shape and dtype.

use super::{Place, StiefelCases, frame, stiefel_limit};
use crate::{Tolerance, assert_close, gradcheck, layouts, normal, normal_scaled, to_f64};
use candle_core::{DType, Device, Result, Tensor, Var, bail};

pub(super) struct Laws<'a, F> {
    pub(super) op: &'a F,
    pub(super) cases: &'a StiefelCases,
    pub(super) shape: (usize, usize),
    pub(super) dtype: DType,
}

impl<F: Fn(&Tensor) -> Result<Tensor>> Laws<'_, F> {
    fn place(&self, raw: &Tensor, scale: f64, seed: u64) -> Place<'_> {
        Place::new(&self.cases.name, raw).at(scale, seed)
    }

    fn draw(&self, batch: &[usize], scale: f64, seed: u64) -> Result<Tensor> {
        let dims = [batch, &[self.shape.0, self.shape.1]].concat();
        normal_scaled(&dims, self.dtype, seed, scale)
    }

    /// Orthonormal at every scale, with equal and nearly equal columns too, and the lengths of vectors survive.
    pub(super) fn orthonormal(&self) -> Result<()> {
        let (n, k) = self.shape;
        for (seed, &scale) in (self.cases.seed..).zip(&self.cases.scales) {
            let raw = self.draw(&[], scale, seed)?;
            // What f16 can't hold is no parameter.
            if to_f64(&raw)?.iter().any(|x| !x.is_finite()) {
                continue;
            }
            let place = self.place(&raw, scale, seed);
            let q = (self.op)(&raw).map_err(place.name_it("orthonormal"))?;
            frame(&place, &q, &raw)?;
            let x = normal(&[k, 1], DType::F64, 99)?;
            let length = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f64>();
            let ratio = (length(&q.to_dtype(DType::F64)?.matmul(&x)?)? / length(&x)?).sqrt();
            // A residual R moves the square of a length by at most |R|₂ <= k max|R|.
            let allowed = match self.dtype {
                DType::F32 | DType::F64 => stiefel_limit(self.dtype),
                dtype => k as f64 * stiefel_limit(dtype),
            };
            if !((ratio - 1.).abs() <= allowed) {
                return place.fail("lengths", &format!("{ratio}"), &format!("1 ± {allowed:e}"));
            }
            if self.cases.repeated_columns && k > 1 {
                let repeated = raw.narrow(1, 0, 1)?.broadcast_as((n, k))?.contiguous()?;
                let nearly = (&repeated + (raw * 1e-5)?)?;
                for (what, raw) in [("repeated columns", repeated), ("nearly repeated", nearly)] {
                    let q = (self.op)(&raw).map_err(place.name_it(what))?;
                    frame(&place, &q, &raw).map_err(place.name_it(what))?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn zero(&self) -> Result<()> {
        let Some(factor) = self.cases.at_zero else { return Ok(()) };
        let (n, k) = self.shape;
        let raw = Tensor::zeros((n, k), self.dtype, &Device::Cpu)?;
        let eye = (Tensor::eye(n, self.dtype, &Device::Cpu)?.narrow(1, 0, k)? * factor)?;
        let place = self.place(&raw, 0., 0);
        let q = (self.op)(&raw).map_err(place.name_it("zero"))?;
        assert_close("zero", &q, &eye, Tolerance::EXACT).map_err(place.name_it("zero"))
    }

    /// NaN or infinity where the op reads is an error, not a poisoned frame.
    pub(super) fn not_finite(&self) -> Result<()> {
        let (n, k) = self.shape;
        if n == 1 && self.cases.strict_lower {
            return Ok(());
        }
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut values = to_f64(&self.draw(&[], 1., self.cases.seed)?)?;
            // The first entry of the last row: below the diagonal.
            values[(n - 1) * k] = bad;
            let raw = Tensor::from_vec(values, (n, k), &Device::Cpu)?.to_dtype(self.dtype)?;
            if (self.op)(&raw).is_ok() {
                let place = self.place(&raw, 1., self.cases.seed);
                return place.fail("a parameter that is not finite", "a frame", "an error");
            }
        }
        Ok(())
    }

    /// What lies on or above the diagonal changes no bit, be it NaN.
    pub(super) fn noise(&self) -> Result<()> {
        if !self.cases.strict_lower {
            return Ok(());
        }
        let (n, k) = self.shape;
        let raw = self.draw(&[], 1., self.cases.seed)?;
        let place = self.place(&raw, 1., self.cases.seed);
        let want = (self.op)(&raw).map_err(place.name_it("orthonormal"))?;
        let values = to_f64(&raw)?;
        for noise in [0., 1e3, f64::NAN, f64::INFINITY] {
            let noisy: Vec<f64> =
                (0..n * k).map(|at| if at / k > at % k { values[at] } else { noise }).collect();
            let noisy = Tensor::from_vec(noisy, (n, k), &Device::Cpu)?.to_dtype(self.dtype)?;
            let law = format!("{noise} on and above the diagonal");
            let got = (self.op)(&noisy).map_err(place.name_it(&law))?;
            assert_close("bits", &got, &want, Tolerance::EXACT).map_err(place.name_it(&law))?;
        }
        Ok(())
    }

    /// A batch is the loop over its matrices, bit for bit.
    pub(super) fn batches(&self) -> Result<()> {
        let (n, k) = self.shape;
        for batch in &self.cases.batches {
            let raw = self.draw(batch, 1., self.cases.seed)?;
            let place = self.place(&raw, 1., self.cases.seed);
            let q = (self.op)(&raw).map_err(place.name_it("batch"))?;
            if q.dims() != raw.dims() {
                let (got, wanted) = (format!("{:?}", q.dims()), format!("{:?}", raw.dims()));
                return place.fail("batch", &got, &wanted);
            }
            let count: usize = batch.iter().product();
            if count == 0 {
                continue;
            }
            let (q, raw) = (q.reshape((count, n, k))?, raw.reshape((count, n, k))?);
            for i in 0..count {
                let one = (self.op)(&raw.get(i)?).map_err(place.name_it("batch"))?;
                let what = format!("matrix {i}");
                assert_close(&what, &q.get(i)?, &one, Tolerance::EXACT)
                    .map_err(place.name_it("batch"))?;
            }
        }
        Ok(())
    }

    /// Differences in f64; in narrower dtypes the f64 gradient of the same numbers. Zero where nothing is read.
    pub(super) fn gradient(&self) -> Result<()> {
        let (n, k) = self.shape;
        for (seed, &scale) in (self.cases.seed..).zip(&self.cases.gradient_scales) {
            let raw = self.draw(&[], scale, seed)?;
            let place = self.place(&raw, scale, seed);
            let (_, got) =
                self.value_and_gradient(&raw, &raw).map_err(place.name_it("gradient"))?;
            let values = to_f64(&got)?;
            if let Some(x) = values.iter().find(|x| !x.is_finite()) {
                return place.fail("gradient", &x.to_string(), "finite entries");
            }
            let unread = |at: &usize| at / k <= at % k && values[*at] != 0.;
            if self.cases.strict_lower
                && let Some(at) = (0..n * k).find(unread)
            {
                let law = format!("gradient on or above the diagonal, entry {at}");
                return place.fail(&law, &format!("{:e}", values[at]), "0");
            }
            if self.dtype == DType::F64 {
                gradcheck(|x| (self.op)(&x[0]), &[raw]).map_err(place.name_it("gradient"))?;
            } else if self.cases.dtypes.contains(&DType::F64) {
                let (_, want) = self.value_and_gradient(&raw.to_dtype(DType::F64)?, &raw)?;
                // Sums of n k terms in f32, stored in the dtype. The terms are as large as the weights of the sum that is
                // differentiated, about one, and may cancel: a few roundings of them stay however small the gradient is.
                let tolerance = Tolerance::for_op(DType::F32, self.dtype, n * k);
                let tolerance = Tolerance { absolute: 4. * f64::from(f32::EPSILON), ..tolerance };
                assert_close("against f64", &got, &want, tolerance)
                    .map_err(place.name_it("gradient"))?;
            }
        }
        Ok(())
    }

    /// Strides and offsets change no bit, neither of the value nor of the gradient.
    pub(super) fn layouts(&self) -> Result<()> {
        let raw = self.draw(&[], 1., self.cases.seed)?;
        let mut place = self.place(&raw, 1., self.cases.seed);
        let var = Var::from_tensor(&raw)?;
        let mut first: Option<(Tensor, Tensor)> = None;
        for (layout, view) in layouts(var.as_tensor())? {
            place.layout = layout;
            let law = place.name_it("layout");
            let (q, grad) = self.backward(&var, &view, &raw).map_err(law)?;
            let (q0, g0) = first.get_or_insert_with(|| (q.clone(), grad.clone()));
            for (what, got, want) in [("value", &q, &*q0), ("gradient", &grad, &*g0)] {
                assert_close(what, got, want, Tolerance::EXACT).map_err(place.name_it("layout"))?;
            }
        }
        Ok(())
    }

    /// Value and gradient of `<G, op(raw)>`; `G` is rounded to the dtype of `like`, so that all dtypes see the same.
    fn value_and_gradient(&self, raw: &Tensor, like: &Tensor) -> Result<(Tensor, Tensor)> {
        let var = Var::from_tensor(raw)?;
        self.backward(&var, var.as_tensor(), like)
    }

    fn backward(&self, var: &Var, view: &Tensor, like: &Tensor) -> Result<(Tensor, Tensor)> {
        let q = (self.op)(view)?;
        let cotangent = normal(q.dims(), like.dtype(), 77)?.to_dtype(q.dtype())?;
        let grads = (&q * cotangent)?.sum_all()?.backward()?;
        match grads.get(var) {
            Some(grad) => Ok((q, grad.clone())),
            None => bail!("expected a gradient, got none: no gradient reaches the parameter"),
        }
    }
}
