//! Every op on a device against the same op, or its slow twin, in f64 on the CPU: results and gradients.
//!
//! Invariants: inputs are rounded to the dtype first, so that both sides see the same numbers, and so is the gradient that comes in;
//! what is allowed follows from the dtype, the longest sum, and a gain and roundings whose cause stands beside them. On the device `cpu` the suite compares the
//! CPU's kernels with each other: it then proves itself, and in the tests that it finds what is wrong.

mod checks;
mod law;
mod loss;
mod nn;
mod norm;
mod ortho;
#[cfg(test)]
mod tests;
mod training;

use candle_core::{DType, Device, Error, Result, Tensor, Var, bail};
use law::Law;
use std::collections::BTreeMap;
use std::sync::Arc;
use vkd_testkit::{layouts, normal};

/// A function of one tensor.
type Unary = fn(&Tensor) -> Result<Tensor>;

/// An op with one result, before it is one.
type Function = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

/// An op: its results from its inputs.
type Op = Arc<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync>;

const FLOATS: [DType; 4] = [DType::F64, DType::F32, DType::BF16, DType::F16];

/// Values of the inputs up to which a case is a small one: such run under a sanitizer, in tests, and in every layout.
const SMALL: usize = 20_000;

/// One op at one size.
struct Case {
    /// The op, then what tells this case from its others.
    name: String,
    op: Op,
    oracle: Option<Op>,
    /// On the CPU, floats in f32.
    inputs: Vec<Tensor>,
    /// How many of them, the first, have a gradient.
    active: usize,
    dtypes: Vec<DType>,
    law: Law,
}

impl Case {
    fn new(
        name: String,
        inputs: Vec<Tensor>,
        active: usize,
        terms: usize,
        op: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    ) -> Self {
        let op = Arc::new(op);
        let dtypes = FLOATS.to_vec();
        let law = Law { terms, gain: 1., wide: false, roundings: 0. };
        Self { name, op, oracle: None, inputs, active, dtypes, law }
    }

    /// Compared with another function than the op itself.
    fn against(
        self,
        oracle: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    ) -> Self {
        Self { oracle: Some(Arc::new(oracle)), ..self }
    }

    fn of_dtypes(self, dtypes: &[DType]) -> Self {
        Self { dtypes: dtypes.to_vec(), ..self }
    }

    fn with_gain(self, gain: f64) -> Self {
        Self { law: Law { gain, ..self.law }, ..self }
    }

    fn in_f64(self) -> Self {
        Self { law: Law { wide: true, ..self.law }, ..self }
    }

    /// Where a device rounds to a half type before the last rounding, how many roundings of the largest value that may come to.
    fn with_roundings(self, roundings: f64) -> Self {
        Self { law: Law { roundings, ..self.law }, ..self }
    }

    fn values(&self) -> usize {
        self.inputs.iter().map(Tensor::elem_count).sum()
    }

    /// The first word of the name.
    fn family(&self) -> &str {
        self.name.split(' ').next().unwrap_or_default()
    }

    /// The inputs as a dtype holds them.
    fn rounded(&self, dtype: DType) -> Result<Vec<Tensor>> {
        self.inputs.iter().map(|x| cast(x, dtype)).collect()
    }

    /// All results in f64 on the CPU, from inputs of `dtype`.
    fn wanted(&self, dtype: DType) -> Result<Vec<Tensor>> {
        let wide =
            self.rounded(dtype)?.iter().map(|x| cast(x, DType::F64)).collect::<Result<Vec<_>>>()?;
        results(self.oracle.as_ref().unwrap_or(&self.op), &wide, self.active, 0)
    }

    /// The largest share of what is allowed by which `op` is off on `device`, and on how many results that is about.
    fn check(
        &self,
        op: &Op,
        dtype: DType,
        device: &Device,
        want: &[Tensor],
    ) -> Result<(f64, usize)> {
        let here = self.rounded(dtype)?;
        let here = here.iter().map(|x| x.to_device(device)).collect::<Result<Vec<_>>>()?;
        let ways = if dtype == DType::F32 && self.values() <= SMALL { 4 } else { 1 };
        let (mut worst, mut count) = (0f64, 0);
        for way in 0..ways {
            let got = results(op, &here, self.active, way)?;
            if got.len() != want.len() {
                bail!("expected {} results, got {}", want.len(), got.len())
            }
            let outputs = want.len() - self.active;
            for (at, (got, want)) in got.iter().zip(want).enumerate() {
                let part = match at.checked_sub(outputs) {
                    None => format!("result {at}, layout {way}"),
                    Some(input) => format!("gradient of input {input}, layout {way}"),
                };
                worst = worst.max(self.law.check(&part, dtype, got, want)?);
                count += 1;
            }
        }
        Ok((worst, count))
    }
}

/// An op with one result.
fn one(
    op: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static {
    move |x| Ok(vec![op(x)?])
}

/// Drawn inputs, each by its own seed.
fn drawn(shapes: &[&[usize]]) -> Result<Vec<Tensor>> {
    shapes.iter().enumerate().map(|(i, dims)| normal(dims, DType::F32, i as u64 + 1)).collect()
}

/// `3x257`.
fn shown(dims: &[usize]) -> String {
    dims.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// Floats in `dtype`; integers stay.
fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype().is_float() { x.to_dtype(dtype) } else { Ok(x.clone()) }
}

/// What `op` gives, then the gradients of the first `active` inputs for drawn gradients of what it gives; on the CPU. The inputs are
/// laid out in one of the ways of [`layouts`].
fn results(op: &Op, inputs: &[Tensor], active: usize, way: usize) -> Result<Vec<Tensor>> {
    let (with_gradient, fixed) = inputs.split_at(active);
    let vars = with_gradient.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let lay = |x: &Tensor| -> Result<Tensor> {
        if way == 0 {
            return Ok(x.clone());
        }
        let mut ways = layouts(x)?;
        Ok(ways.swap_remove(way.min(ways.len() - 1)).1)
    };
    let all = vars.iter().map(Var::as_tensor).chain(fixed).map(lay).collect::<Result<Vec<_>>>()?;
    let outputs = op(&all)?;
    // Nothing may come back by way of the host.
    for (i, output) in outputs.iter().enumerate() {
        if let Some(x) = inputs.first()
            && !output.device().same_device(x.device())
        {
            bail!("expected result {i} on {:?}, got it on {:?}", x.device(), output.device())
        }
    }
    let host = |x: &Tensor| x.detach().to_device(&Device::Cpu);
    let mut found = outputs.iter().map(host).collect::<Result<Vec<_>>>()?;
    if active == 0 {
        return Ok(found);
    }
    let mut loss: Option<Tensor> = None;
    for (i, output) in outputs.iter().enumerate() {
        // In a half type first, so that every dtype has the same numbers.
        let incoming = normal(output.dims(), DType::F32, 11 + i as u64)?.to_dtype(DType::BF16)?;
        let incoming = incoming.to_dtype(output.dtype())?.to_device(output.device())?;
        // Outputs need not be of one dtype.
        let term = (output * incoming)?.sum_all()?.to_dtype(DType::F64)?;
        loss = Some(match loss {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    let Some(loss) = loss else { bail!("expected a result, got none") };
    let grads = loss.backward()?;
    for (i, var) in vars.iter().enumerate() {
        match grads.get(var) {
            Some(grad)
                if !grad.device().same_device(var.device()) || grad.dtype() != var.dtype() =>
            {
                bail!(
                    "expected the gradient of input {i} as {:?} on {:?}, got {:?} on {:?}",
                    var.dtype(),
                    var.device(),
                    grad.dtype(),
                    grad.device()
                )
            }
            Some(grad) => found.push(host(grad)?),
            None => bail!("expected a gradient of input {i}, got none"),
        }
    }
    Ok(found)
}

fn cases() -> Result<Vec<Case>> {
    let parts = [norm::cases()?, loss::cases()?, nn::cases()?, ortho::cases()?, training::cases()?];
    Ok(parts.into_iter().flatten().collect())
}

/// Which cases run.
pub(crate) struct Options {
    pub(crate) filter: String,
    /// Only those of few values.
    pub(crate) small: bool,
}

/// Runs the suite and prints a line for each op and each failure.
///
/// # Errors
/// A case that failed, after all have run, or a filter that none passes.
pub(crate) fn run(device: &Device, options: &Options) -> Result<()> {
    let mut found: BTreeMap<String, (usize, f64)> = BTreeMap::new();
    let mut failures = Vec::new();
    for case in cases()? {
        // The CPU computes half types in f32: it rounds once.
        let case = if device.is_cpu() { case.with_roundings(0.) } else { case };
        if !case.name.contains(&options.filter) || (options.small && case.values() > SMALL) {
            continue;
        }
        for &dtype in &case.dtypes {
            let checked =
                case.wanted(dtype).and_then(|want| case.check(&case.op, dtype, device, &want));
            match checked {
                Ok((worst, count)) => {
                    let (sum, largest) = found.entry(case.family().to_owned()).or_default();
                    *sum += count;
                    *largest = largest.max(worst);
                }
                Err(e) => {
                    let line = format!("FAILED {} {dtype:?}: {}", case.name, vkd_train::plain(&e));
                    println!("{line}");
                    failures.push(line);
                }
            }
        }
    }
    let mut tried = 0;
    if device.is_cuda() {
        match checks::run(device, &options.filter) {
            Ok(count) => tried = count,
            Err(e) => {
                println!("FAILED {}", vkd_train::plain(&e));
                failures.push(vkd_train::plain(&e));
            }
        }
    }
    let checks: usize = found.values().map(|(count, _)| count).sum();
    if checks + tried + failures.len() == 0 {
        bail!("laws: expected a case whose name contains {:?}, got none", options.filter)
    }
    println!("{:<28} {:>8} {:>24}", "op", "results", "largest share of allowed");
    for (name, (count, worst)) in &found {
        println!("{name:<28} {count:>8} {worst:>24.3}");
    }
    println!("{checks} results of {} ops hold", found.len());
    if tried > 0 {
        println!("{tried} checks find a wrong value, and no right one");
    }
    match failures.len() {
        0 => Ok(()),
        n => Err(Error::Msg(format!("laws: {n} cases failed, the first: {}", failures[0]))),
    }
}
