//! Variables, parameters and multiply-adds of a model from its configuration alone.

use crate::{Architecture, ModelConfig};
use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use vkd_nn::is_buffer;

/// What a model costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelCost {
    /// Trainable values.
    pub parameters: usize,
    /// Multiply-adds of one image's forward pass: those of convolutions, linear maps and attention. What papers call FLOPs.
    pub multiply_adds: usize,
}

/// Records what a model asks for; each answer is one zero, spread over the shape, so that nothing big is allocated.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<BTreeMap<String, Shape>>>);

impl SimpleBackend for Recorder {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _init: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let zero = Tensor::zeros((), dtype, device)?.broadcast_as(&shape)?;
        // A panic while the lock is held can't leave a map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), shape);
        Ok(zero)
    }

    fn get_unchecked(&self, name: &str, _dtype: DType, _device: &Device) -> Result<Tensor> {
        bail!("variable {name}: expected a shape, got none")
    }

    fn contains_tensor(&self, _name: &str) -> bool {
        false
    }
}

/// Name and shape of every variable that `build` asks for, without allocating any.
pub(crate) fn recorded<T>(
    build: impl FnOnce(VarBuilder) -> Result<T>,
) -> Result<BTreeMap<String, Shape>> {
    let recorder = Recorder::default();
    let backend = Box::new(recorder.clone());
    build(VarBuilder::from_backend(backend, DType::F32, Device::Cpu))?;
    let found = recorder.0.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(found.clone())
}

impl ModelConfig {
    /// Name and shape of every variable, buffers included, without allocating any.
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    pub fn variables(&self) -> Result<BTreeMap<String, Shape>> {
        recorded(|vb| self.build(vb))
    }

    /// Parameters and multiply-adds, without building the model.
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    ///
    /// # Example
    /// ```
    /// use vkd_models::{Architecture, ModelConfig, ResnetConfig};
    /// let architecture = Architecture::Resnet(ResnetConfig::resnet50());
    /// let config = ModelConfig { image_size: 224, channels: 3, classes: 1000, architecture };
    /// assert_eq!(config.cost()?.parameters, 25_557_032);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn cost(&self) -> Result<ModelCost> {
        let variables = self.variables()?;
        let trained = variables.iter().filter(|(name, _)| !is_buffer(name));
        let parameters = trained.map(|(_, shape)| shape.elem_count()).sum();
        // A weight does as many multiply-adds at each place as it has values; gains of norms are none.
        let maps = variables.iter().filter(|(n, s)| n.ends_with(".weight") && s.rank() > 1);
        let maps: usize = maps.map(|(n, s)| s.elem_count() * self.positions(n)).sum();
        let attention = match &self.architecture {
            Architecture::Vit(c) => c.attention(self.image_size),
            Architecture::Deit(c) => c.attention(self.image_size),
            _ => 0,
        };
        Ok(ModelCost { parameters, multiply_adds: maps + attention })
    }

    fn positions(&self, name: &str) -> usize {
        match &self.architecture {
            Architecture::Vit(c) => c.positions(self.image_size, name),
            Architecture::Deit(c) => c.positions(self.image_size, name),
            Architecture::Cnn(c) => c.positions(self.image_size, name),
            Architecture::Resnet(c) => c.positions(self.image_size, name),
            Architecture::Regnet(c) => c.positions(self.image_size, name),
            Architecture::EfficientnetLite(c) => c.positions(self.image_size, name),
        }
    }
}
