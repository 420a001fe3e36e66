//! One batch of images with boxes.

use super::Objects;
use crate::task::moved;
use candle_core::{Device, Result, Tensor};
use std::sync::Arc;

/// Images of different sizes side by side, padded at the right and at the bottom, with what is to be found in them.
#[derive(Clone, Debug)]
pub struct DetectionBatch {
    /// Images `(B, C, H, W)`, zero where padded.
    pub images: Tensor,
    /// Where images are padded, u8 `(B, H, W)`: 1 there, 0 on the image. On the CPU, where networks look at it.
    pub padding: Tensor,
    /// The objects of each image, in its pixels as the network sees it.
    pub objects: Vec<Objects>,
    /// Height and width of each image within the batch, padding left out.
    pub sizes: Vec<[usize; 2]>,
    /// Height and width of each image as it is stored: boxes times the quotient of the two are the stored image's, where nothing
    /// was cropped.
    pub original_sizes: Vec<[usize; 2]>,
    /// Identity of each image in its data set.
    pub sample_ids: Arc<[u64]>,
}

impl DetectionBatch {
    /// The same with its images on `device`. The padding stays: what a network makes of it, positions and masks, is made on the CPU.
    ///
    /// # Errors
    /// Those of the copy.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self { images: moved(&self.images, device)?, ..self.clone() })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Number of objects, all images together.
    pub fn object_count(&self) -> usize {
        self.objects.iter().map(Objects::len).sum()
    }
}
