//! The window of a convolution or a pool: where it lies, and how many of it fit.

use candle_core::{Result, bail};

/// A window in rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) padding: [usize; 2],
    pub(crate) dilation: [usize; 2],
}

impl Window {
    /// Refuses zero sizes; `what` is the op or the layer.
    pub(crate) fn check(&self, what: &str) -> Result<()> {
        let sizes = [self.kernel, self.stride, self.dilation];
        if sizes.as_flattened().contains(&0) {
            bail!("{what}: expected kernel, stride and dilation above 0, got {self:?}")
        }
        Ok(())
    }

    /// Pixels from the first to the last tap along an axis, both counted.
    pub(crate) fn span(&self, axis: usize) -> Option<usize> {
        (self.kernel[axis] - 1).checked_mul(self.dilation[axis])?.checked_add(1)
    }

    /// Number of windows along each axis of an image; with `ceil` a last window may start inside and end beyond the padding.
    pub(crate) fn counts(&self, what: &str, size: [usize; 2], ceil: bool) -> Result<[usize; 2]> {
        self.check(what)?;
        let mut counts = [0; 2];
        for axis in 0..2 {
            let padded = self.padding[axis].checked_mul(2).and_then(|p| p.checked_add(size[axis]));
            let room = padded.zip(self.span(axis)).and_then(|(p, span)| p.checked_sub(span));
            let Some(room) = room else {
                bail!("{what}: expected a window within the padded image, got {self:?} on {size:?}")
            };
            let stride = self.stride[axis];
            counts[axis] = room / stride + 1;
            // No window may lie in the padding alone.
            let start = counts[axis].saturating_mul(stride);
            if ceil && room % stride != 0 && start < size[axis] + self.padding[axis] {
                counts[axis] += 1;
            }
        }
        Ok(counts)
    }

    /// The pixel under a tap of a window, unless it lies outside the image.
    #[inline(always)]
    pub(crate) fn pixel(
        &self,
        axis: usize,
        window: usize,
        tap: usize,
        size: usize,
    ) -> Option<usize> {
        (window * self.stride[axis] + tap * self.dilation[axis])
            .checked_sub(self.padding[axis])
            .filter(|p| *p < size)
    }
}

/// Refuses a result of more bytes than memory can address.
pub(crate) fn addressable(what: &str, dims: &[usize]) -> Result<()> {
    let bytes = dims.iter().try_fold(size_of::<f64>(), |n, &size| n.checked_mul(size));
    match bytes.and_then(|bytes| isize::try_from(bytes).ok()) {
        Some(_) => Ok(()),
        None => bail!("{what}: expected a result that fits in memory, got {dims:?}"),
    }
}
