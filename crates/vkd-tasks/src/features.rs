//! What a network hands over.

use candle_core::{DType, Result, Tensor, bail};
use std::collections::BTreeMap;
use vkd_norm::Context;

/// How the dimensions of a feature tensor are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `(B, N, C)`: N tokens.
    Tokens,
    /// `(B, C, H, W)`: a map, channels first as in PyTorch.
    Grid,
    /// `(L, B, N, C)`: N tokens after each of L layers, as the queries of a decoder are.
    Queries,
    /// `(B, C)`: pooled already.
    Pooled,
}

/// Features by tap name.
pub type Taps = BTreeMap<String, FeatureMap>;

/// Features with their layout.
#[derive(Clone, Debug)]
pub struct FeatureMap {
    tensor: Tensor,
    layout: Layout,
    padding: Option<Tensor>,
}

impl FeatureMap {
    /// Features of the given layout.
    ///
    /// # Errors
    /// A rank that doesn't belong to the layout.
    pub fn new(tensor: Tensor, layout: Layout) -> Result<Self> {
        let rank = match layout {
            Layout::Tokens => 3,
            Layout::Grid | Layout::Queries => 4,
            Layout::Pooled => 2,
        };
        if tensor.rank() != rank {
            bail!("feature map: expected {rank} dimensions for {layout:?}, got {:?}", tensor.dims())
        }
        Ok(Self { tensor, layout, padding: None })
    }

    /// Says which cells of a grid are padding: a mask `(B, H, W)`, not zero where the image is not.
    ///
    /// # Errors
    /// Another layout than a grid, or a mask of another shape.
    pub fn with_padding(mut self, mask: Tensor) -> Result<Self> {
        match (self.layout, self.tensor.dims(), mask.dims()) {
            (Layout::Grid, [b, _, h, w], got) if got == [*b, *h, *w] => {}
            (layout, dims, got) => bail!(
                "feature map: expected a grid and a padding mask of its batch, height and width, got {layout:?} {dims:?} and {got:?}"
            ),
        }
        self.padding = Some(mask.detach());
        Ok(self)
    }

    /// The mask of [`with_padding`](Self::with_padding).
    pub fn padding(&self) -> Option<&Tensor> {
        self.padding.as_ref()
    }

    /// The features themselves.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Their layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Number of channels C.
    pub fn width(&self) -> usize {
        let dims = self.tensor.dims();
        match self.layout {
            Layout::Tokens => dims[2],
            Layout::Queries => dims[3],
            Layout::Grid | Layout::Pooled => dims[1],
        }
    }

    pub(crate) fn to_dtype(&self, dtype: DType) -> Result<Self> {
        Ok(Self { tensor: self.tensor.to_dtype(dtype)?, ..self.clone() })
    }

    /// The features of `count` images from `start` on.
    pub(crate) fn rows(&self, start: usize, count: usize) -> Result<Self> {
        let batch = if self.layout == Layout::Queries { 1 } else { 0 };
        let padding = self.padding.as_ref().map(|mask| mask.narrow(0, start, count)).transpose()?;
        Ok(Self { tensor: self.tensor.narrow(batch, start, count)?, layout: self.layout, padding })
    }

    fn detach(&self) -> Self {
        Self { tensor: self.tensor.detach(), ..self.clone() }
    }
}

/// Result of one forward pass of a classifier.
#[derive(Clone, Debug)]
pub struct NetworkOutput {
    /// Class logits `(B, K)`.
    pub logits: Tensor,
    /// Logits `(B, K)` of a head of its own for the teacher's logits, as in DeiT; `None` where the network has one head.
    pub distillation_logits: Option<Tensor>,
    /// Features by tap name.
    pub taps: Taps,
}

impl NetworkOutput {
    /// Output with one head and no taps.
    pub fn new(logits: Tensor) -> Self {
        Self { logits, distillation_logits: None, taps: Taps::new() }
    }

    /// Adds the logits of a distillation head.
    pub fn with_distillation_logits(mut self, logits: Tensor) -> Self {
        self.distillation_logits = Some(logits);
        self
    }

    /// Adds a tap.
    pub fn with_tap(mut self, name: &str, features: FeatureMap) -> Self {
        self.taps.insert(name.to_owned(), features);
        self
    }

    /// The logits to predict with: the mean of the two heads' where there are two (DeiT, arXiv:2012.12877).
    ///
    /// # Errors
    /// Heads of different shapes.
    pub fn prediction(&self) -> Result<Tensor> {
        match &self.distillation_logits {
            Some(other) => (&self.logits + other)? * 0.5,
            None => Ok(self.logits.clone()),
        }
    }

    /// The features of tap `name`.
    ///
    /// # Errors
    /// An unknown name; the message lists the known ones. `owner` is `student` or `teacher`.
    pub fn tap(&self, owner: &str, name: &str) -> Result<&FeatureMap> {
        tap(&self.taps, owner, name)
    }

    pub(crate) fn detach(&self) -> Self {
        Self {
            logits: self.logits.detach(),
            distillation_logits: self.distillation_logits.as_ref().map(Tensor::detach),
            taps: detached(&self.taps),
        }
    }
}

/// Taps without a tape.
pub(crate) fn detached(taps: &Taps) -> Taps {
    taps.iter().map(|(n, f)| (n.clone(), f.detach())).collect()
}

/// The features of tap `name`, or an error that lists the known ones.
pub(crate) fn tap<'a>(taps: &'a Taps, owner: &str, name: &str) -> Result<&'a FeatureMap> {
    match taps.get(name) {
        Some(features) => Ok(features),
        None => {
            let known: Vec<&str> = taps.keys().map(String::as_str).collect();
            bail!("{owner}: expected a tap named {name}, got {}", known.join(", "))
        }
    }
}

/// A student or teacher: images `(B, ..)` to a [`NetworkOutput`]. Every closure of this form is one.
pub trait Network {
    /// One forward pass of images `(B, ..)`.
    ///
    /// # Errors
    /// Whatever the network refuses: another image shape or dtype, a context without the sample ids that its layers draw by.
    fn forward(&self, images: &Tensor, ctx: &Context) -> Result<NetworkOutput>;
}

impl<F: Fn(&Tensor, &Context) -> Result<NetworkOutput>> Network for F {
    fn forward(&self, images: &Tensor, ctx: &Context) -> Result<NetworkOutput> {
        self(images, ctx)
    }
}
