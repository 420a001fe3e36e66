//! AdamW with named state and one pass per parameter.

use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor, Var, WithDType, bail,
};
use num_traits::Float;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

/// Settings of [`AdamW`]; the default is PyTorch's and the paper's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment; default 0.9.
    pub beta1: f64,
    /// Decay of the second moment; default 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment; default 1e-8, at least the smallest normal f32.
    pub eps: f64,
    /// Decoupled decay of the parameters that the constructor's `decays` accepts; default 0.05 as in DeiT and V_kD.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.05 }
    }
}

/// AdamW (Loshchilov and Hutter, arXiv:1711.05101): `p -= lr·(wd·p + m̂ / (sqrt(v̂) + eps))`.
///
/// State is kept by variable name, so that it can be saved, and is in the variable's dtype.
pub struct AdamW {
    config: AdamWConfig,
    step: u64,
    parameters: Vec<Parameter>,
}

struct Parameter {
    name: String,
    var: Var,
    weight_decay: f64,
    moments: Mutex<Moments>,
}

enum Moments {
    F32(Vec<f32>, Vec<f32>),
    F64(Vec<f64>, Vec<f64>),
}

impl AdamW {
    /// An optimiser over `parameters`; `decays` says by name and variable whether weight decay applies.
    ///
    /// # Errors
    /// A setting out of range, a variable that is neither f32 nor f64, or one that is not on the CPU.
    pub fn new(
        parameters: Vec<(String, Var)>,
        config: AdamWConfig,
        decays: impl Fn(&str, &Var) -> bool,
    ) -> Result<Self> {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = config;
        // Negated comparisons: NaN is refused too.
        if !((0. ..1.).contains(&beta1)
            && (0. ..1.).contains(&beta2)
            && eps >= f64::from(f32::MIN_POSITIVE)
            && eps.is_finite()
            && weight_decay >= 0.
            && weight_decay.is_finite())
        {
            bail!(
                "adamw: expected betas in [0, 1), a finite eps of at least {:e} and a finite weight decay of at least 0, got {config:?}",
                f32::MIN_POSITIVE
            )
        }
        let parameters = parameters
            .into_iter()
            .map(|(name, var)| {
                let n = var.elem_count();
                let moments = match (var.dtype(), var.device()) {
                    (DType::F32, Device::Cpu) => Moments::F32(vec![0.; n], vec![0.; n]),
                    (DType::F64, Device::Cpu) => Moments::F64(vec![0.; n], vec![0.; n]),
                    (dtype, device) => {
                        bail!("adamw: expected f32 or f64 on the CPU, got {name} with {dtype:?} on {device:?}")
                    }
                };
                let weight_decay = if decays(&name, &var) { weight_decay } else { 0. };
                Ok(Parameter { name, var, weight_decay, moments: Mutex::new(moments) })
            })
            .collect::<Result<_>>()?;
        Ok(Self { config, step: 0, parameters })
    }

    /// One update with learning rate `lr`. A parameter without a gradient keeps its value and moments.
    ///
    /// # Errors
    /// A learning rate that is negative or not finite.
    pub fn step(&mut self, grads: &GradStore, lr: f64) -> Result<()> {
        if !(lr >= 0. && lr.is_finite()) {
            bail!("adamw: expected a learning rate of at least 0, got {lr}")
        }
        self.step = self.step.saturating_add(1);
        for p in &self.parameters {
            if let Some(grad) = grads.get(&p.var) {
                let update = Update { p, config: &self.config, step: self.step, lr };
                p.var.as_tensor().inplace_op2(&grad.contiguous()?, &update)?;
            }
        }
        Ok(())
    }

    /// Moments as `NAME.m` and `NAME.v`, flat, for a checkpoint; the step count travels beside them.
    pub fn state(&self) -> Result<(u64, BTreeMap<String, Tensor>)> {
        let mut state = BTreeMap::new();
        for p in &self.parameters {
            let (m, v) = match &*p.moments.lock().unwrap_or_else(PoisonError::into_inner) {
                Moments::F32(m, v) => {
                    (Tensor::new(&m[..], &Device::Cpu)?, Tensor::new(&v[..], &Device::Cpu)?)
                }
                Moments::F64(m, v) => {
                    (Tensor::new(&m[..], &Device::Cpu)?, Tensor::new(&v[..], &Device::Cpu)?)
                }
            };
            state.insert(format!("{}.m", p.name), m);
            state.insert(format!("{}.v", p.name), v);
        }
        Ok((self.step, state))
    }

    /// Takes up a [`state`](Self::state).
    ///
    /// # Errors
    /// A missing moment or one of another size or dtype, by name; earlier ones may have been taken up already.
    pub fn load_state(&mut self, step: u64, state: &HashMap<String, Tensor>) -> Result<()> {
        for p in &self.parameters {
            let get = |part: &str| match state.get(&format!("{}.{part}", p.name)) {
                Some(t) if t.elem_count() == p.var.elem_count() && t.dtype() == p.var.dtype() => {
                    t.flatten_all()
                }
                Some(t) => bail!(
                    "adamw: {}.{part}: expected {} values of {:?}, got {:?} of {:?}",
                    p.name,
                    p.var.elem_count(),
                    p.var.dtype(),
                    t.dims(),
                    t.dtype()
                ),
                None => bail!("adamw: expected the moment {}.{part}, got no such tensor", p.name),
            };
            let (m, v) = (get("m")?, get("v")?);
            let moments = match p.var.dtype() {
                DType::F32 => Moments::F32(m.to_vec1()?, v.to_vec1()?),
                _ => Moments::F64(m.to_vec1()?, v.to_vec1()?),
            };
            *p.moments.lock().unwrap_or_else(PoisonError::into_inner) = moments;
        }
        self.step = step;
        Ok(())
    }
}

struct Update<'a> {
    p: &'a Parameter,
    config: &'a AdamWConfig,
    step: u64,
    lr: f64,
}

impl Update<'_> {
    fn run<T: WithDType + Float>(&self, param: &mut [T], grad: &[T], m: &mut [T], v: &mut [T]) {
        let of = T::from_f64;
        let AdamWConfig { beta1, beta2, eps, .. } = *self.config;
        // PyTorch's order of operations: decay first, bias corrections folded into the step size and the root.
        let keep = of(1. - self.lr * self.p.weight_decay);
        let step = i32::try_from(self.step).unwrap_or(i32::MAX);
        let step_size = of(self.lr / (1. - beta1.powi(step)));
        let root = of((1. - beta2.powi(step)).sqrt());
        let (b1, b2, eps, one) = (of(beta1), of(beta2), of(eps), T::one());
        for (((p, g), m), v) in param.iter_mut().zip(grad).zip(m.iter_mut()).zip(v.iter_mut()) {
            *m = b1 * *m + (one - b1) * *g;
            *v = b2 * *v + (one - b2) * *g * *g;
            *p = keep * *p - step_size * *m / (v.sqrt() / root + eps);
        }
    }
}

fn dense(layout: &Layout, what: &str) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((a, b)) => Ok(a..b),
        None => bail!("adamw: expected a contiguous {what}, got {layout:?}"),
    }
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<()> {
        let (at, from) = (dense(l1, "parameter")?, dense(l2, "gradient")?);
        let mut moments = self.p.moments.lock().unwrap_or_else(PoisonError::into_inner);
        match (s1, s2, &mut *moments) {
            (CpuStorage::F32(p), CpuStorage::F32(g), Moments::F32(m, v)) => {
                self.run(&mut p[at], &g[from], m, v)
            }
            (CpuStorage::F64(p), CpuStorage::F64(g), Moments::F64(m, v)) => {
                self.run(&mut p[at], &g[from], m, v)
            }
            _ => bail!("adamw: expected parameter and gradient of one dtype for {}", self.p.name),
        }
        Ok(())
    }
}
