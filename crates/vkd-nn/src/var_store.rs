//! Variables by name, in sorted order, with seeded initial values.

use crate::init;
use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vkd_norm::stream;

/// The variables of a model: what candle's `VarMap` is for, but seeded and ordered.
///
/// An initial value is a function of the store's seed and of the variable's full name, so two stores with the same
/// seed agree whatever the order of construction. Buffers ([`is_buffer`]) are saved with the rest and never trained.
///
/// Cloning is cheap and shares the variables.
#[derive(Clone)]
pub struct VarStore {
    seed: u64,
    dtype: DType,
    device: Device,
    vars: Arc<Mutex<BTreeMap<String, Var>>>,
}

/// Whether a variable is state that no gradient reaches: the last part of its name is `base` (the fixed frame of an
/// orthogonal projector), `running_mean`, `running_var` or `num_batches_tracked`, the same of BigGAN (`stored_mean`,
/// `stored_var`), `u0` or `sv0` of a [spectral norm](crate::SpectralNorm), or `moments` (gathered sums of features).
pub fn is_buffer(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    matches!(
        last,
        "base"
            | "running_mean"
            | "running_var"
            | "num_batches_tracked"
            | "stored_mean"
            | "stored_var"
            | "u0"
            | "sv0"
            | "moments"
    )
}

impl VarStore {
    /// An empty store; variables appear as layers ask its [`builder`](Self::builder) for them.
    pub fn new(seed: u64, dtype: DType, device: &Device) -> Self {
        Self { seed, dtype, device: device.clone(), vars: Arc::default() }
    }

    /// A builder that creates a variable at its first request and returns the same one afterwards.
    ///
    /// A request in another dtype than the variable's gets a cast of it, which is on the tape. So a network that is built again,
    /// for each step, with `builder().set_dtype(DType::BF16)` computes in bf16 while its variables, their gradients and all that
    /// is made of them stay f32: masters. What a layer wants in f32 all the same, running statistics, is the variable itself.
    pub fn builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), self.dtype, self.device.clone())
    }

    /// A builder that hands out what the store holds as constants: a network built with it records nothing for a backward
    /// pass and frees every intermediate result at once. It sees later changes of the variables.
    pub fn frozen(&self) -> VarBuilder<'static> {
        let tensors = self.tensors().into_iter().collect();
        VarBuilder::from_tensors(tensors, self.dtype, &self.device)
    }

    /// The trainable variables, sorted by name.
    pub fn parameters(&self) -> Vec<(String, Var)> {
        self.lock()
            .iter()
            .filter(|(name, _)| !is_buffer(name))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect()
    }

    /// Everything that a checkpoint must hold, parameters and buffers, sorted by name and off the tape.
    ///
    /// The tensors share memory with the variables: the next optimiser step changes them. Copy what has to stay.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.lock().iter().map(|(n, v)| (n.clone(), v.as_detached_tensor())).collect()
    }

    /// Number of trainable values.
    pub fn parameter_count(&self) -> usize {
        self.parameters().iter().map(|(_, v)| v.elem_count()).sum()
    }

    /// Sets every variable from `tensors`, by name.
    ///
    /// # Errors
    /// If a variable is missing there, if a tensor belongs to no variable, or if a shape differs: all names are
    /// listed and nothing is changed. Values are converted to the store's dtype.
    pub fn load(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let vars = self.lock();
        let mut faults: Vec<String> = Vec::new();
        for (name, var) in vars.iter() {
            match tensors.get(name) {
                None => faults.push(format!("missing {name} {:?}", var.dims())),
                Some(t) if t.dims() != var.dims() => {
                    faults.push(format!("{name}: expected {:?}, got {:?}", var.dims(), t.dims()));
                }
                Some(_) => {}
            }
        }
        let mut unexpected: Vec<_> = tensors.keys().filter(|n| !vars.contains_key(*n)).collect();
        unexpected.sort_unstable();
        faults.extend(unexpected.into_iter().map(|n| format!("unexpected {n}")));
        if !faults.is_empty() {
            bail!("load: the tensors don't fit the model: {}", faults.join("; "))
        }
        for (name, var) in vars.iter() {
            if let Some(t) = tensors.get(name) {
                // A copy: `Var::set` refuses a tensor that shares the variable's storage.
                var.set(&t.to_dtype(var.dtype())?.to_device(var.device())?.copy()?)?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Var>> {
        // A panic while the lock is held can't leave a map half changed: inserts are single calls.
        self.vars.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn initial(
        &self,
        shape: &Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let values = init::values(init, shape, &mut stream(self.seed, name, 0, 0));
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
    }
}

fn handed_out(name: &str, var: &Var, dtype: DType) -> Result<Tensor> {
    // A buffer shares its storage with the variable, but no tape starts there.
    let tensor = if is_buffer(name) { var.as_detached_tensor() } else { var.as_tensor().clone() };
    // To the dtype that it has: itself.
    tensor.to_dtype(dtype)
}

impl SimpleBackend for VarStore {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        // One lock for both steps: two threads that ask for the same name get the same variable.
        let mut vars = self.lock();
        if let Some(var) = vars.get(name) {
            if var.shape() != &shape {
                bail!("variable {name}: expected shape {shape:?}, got {:?}", var.shape())
            }
            return handed_out(name, var, dtype);
        }
        let var = Var::from_tensor(&self.initial(&shape, name, init, dtype, device)?)?;
        let tensor = handed_out(name, &var, dtype);
        vars.insert(name.to_owned(), var);
        tensor
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _device: &Device) -> Result<Tensor> {
        match self.lock().get(name) {
            Some(var) => handed_out(name, var, dtype),
            None => {
                bail!("variable {name}: expected to exist already, got no shape to create it with")
            }
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(seed: u64) -> VarStore {
        VarStore::new(seed, DType::F64, &Device::Cpu)
    }

    #[test]
    fn values_depend_on_seed_and_name_only() -> Result<()> {
        let init = init::kaiming_uniform(init::FanInOut::FanIn);
        let (a, b) = (store(1), store(1));
        let x = a.builder().pp("x").get_with_hints((3, 4), "weight", init)?;
        let y = a.builder().pp("y").get_with_hints((3, 4), "weight", init)?;
        b.builder().pp("y").get_with_hints((3, 4), "weight", init)?;
        let again = b.builder().pp("x").get_with_hints((3, 4), "weight", init)?;
        assert_eq!(x.to_vec2::<f64>()?, again.to_vec2::<f64>()?);
        assert_ne!(x.to_vec2::<f64>()?, y.to_vec2::<f64>()?);
        let other = store(2).builder().pp("x").get_with_hints((3, 4), "weight", init)?;
        assert_ne!(x.to_vec2::<f64>()?, other.to_vec2::<f64>()?);
        assert_eq!(
            a.parameters().iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(),
            ["x.weight", "y.weight"]
        );
        Ok(())
    }

    #[test]
    fn buffers_are_saved_but_not_trained() -> Result<()> {
        let s = store(1);
        let base = s.builder().get_with_hints((2, 2), "base", Init::Const(0.))?;
        s.builder().get_with_hints((2, 2), "raw", Init::Const(0.))?;
        assert!(!base.track_op() && !base.is_variable());
        base.slice_set(&Tensor::ones((2, 2), DType::F64, &Device::Cpu)?, 0, 0)?;
        assert_eq!(s.parameters().len(), 1);
        assert_eq!(s.tensors()["base"].to_vec2::<f64>()?, [[1., 1.], [1., 1.]]);
        Ok(())
    }

    #[test]
    fn another_dtype_is_a_cast_and_the_variable_stays() -> Result<()> {
        let s = VarStore::new(1, DType::F32, &Device::Cpu);
        let get = |dtype, name: &str| {
            s.builder().set_dtype(dtype).get_with_hints(1, name, Init::Const(1.001))
        };
        get(DType::F32, "w")?;
        // 1.001 lies between two values of bf16.
        let cast = get(DType::BF16, "w")?;
        assert_eq!(cast.to_dtype(DType::F32)?.to_vec1::<f32>()?, [1.]);
        let var = &s.parameters()[0].1;
        assert_eq!((var.dtype(), var.to_vec1::<f32>()?), (DType::F32, vec![1.001]));
        let grads = (cast * 3.)?.sum_all()?.backward()?;
        let grad = grads.get(var).map(|g| (g.dtype(), g.to_vec1::<f32>()));
        assert!(matches!(grad, Some((DType::F32, Ok(g))) if g == [3.]));
        // A buffer that is asked for in its own dtype shares its memory with the variable.
        get(DType::F32, "running_mean")?;
        let mean = s.builder().set_dtype(DType::BF16).get_with_hints_dtype(
            1,
            "running_mean",
            Init::Const(0.),
            DType::F32,
        )?;
        mean.slice_set(&Tensor::new(&[7f32], &Device::Cpu)?, 0, 0)?;
        assert_eq!(s.tensors()["running_mean"].to_vec1::<f32>()?, [7.]);
        Ok(())
    }

    #[test]
    fn load_lists_every_fault_and_changes_nothing() -> Result<()> {
        let s = store(1);
        s.builder().get_with_hints(2, "a", Init::Const(1.))?;
        s.builder().get_with_hints(3, "b", Init::Const(1.))?;
        let e = s.builder().get_with_hints(4, "b", Init::Const(1.)).unwrap_err().to_string();
        assert!(e.contains("variable b: expected shape"), "{e}");
        let wrong = HashMap::from([
            ("a".to_owned(), Tensor::zeros(2, DType::F64, &Device::Cpu)?),
            ("b".to_owned(), Tensor::zeros(4, DType::F64, &Device::Cpu)?),
            ("c".to_owned(), Tensor::zeros(1, DType::F64, &Device::Cpu)?),
        ]);
        let message = s.load(&wrong).unwrap_err().to_string();
        assert!(
            message.contains("b: expected [3], got [4]") && message.contains("unexpected c"),
            "{message}"
        );
        assert_eq!(s.tensors()["a"].to_vec1::<f64>()?, [1., 1.]);
        let own: HashMap<_, _> = s.tensors().into_iter().collect();
        s.load(&own)
    }
}
