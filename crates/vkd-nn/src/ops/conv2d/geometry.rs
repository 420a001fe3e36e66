//! Sizes of a convolution, and which of the ways to compute it fits them.

use crate::ops::window::Window;

/// Sizes of a convolution over channels-last images; all of them above zero but the batch and the image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) batch: usize,
    /// Rows, columns and channels of an image.
    pub(crate) input: [usize; 3],
    /// Rows, columns and channels of a result.
    pub(crate) output: [usize; 3],
    pub(crate) window: Window,
    pub(crate) groups: usize,
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// A kernel of one pixel: one product over all pixels.
    Pointwise,
    /// One filter per channel: loops over the channels.
    Depthwise,
    /// Products on overlapping rows of a padded image, one per row of the kernel: nothing is gathered.
    Sliding,
    /// Windows gathered into a block, then one product.
    Gathered,
}

impl Geometry {
    pub(super) fn path(&self) -> Path {
        let ([_, _, c], [_, cols, o]) = (self.input, self.output);
        let w = &self.window;
        let unit = w.stride == [1, 1] && w.dilation == [1, 1];
        if self.groups > 1 {
            return if self.groups == c && c == o { Path::Depthwise } else { Path::Gathered };
        }
        if unit && w.kernel == [1, 1] && w.padding == [0, 0] {
            return Path::Pointwise;
        }
        // Sliding computes `kernel - 1` columns per row for nothing; a gathered value costs about as much as 8
        // multiplications. Short inner sums run far below a core's speed.
        let (wasted, depth) = (w.kernel[1] - 1, w.kernel[1] * c);
        if unit && depth >= 16 && wasted * o <= 8 * cols { Path::Sliding } else { Path::Gathered }
    }

    /// Channels that one filter sees, and filters that see them.
    pub(super) fn group(&self) -> [usize; 2] {
        [self.input[2] / self.groups, self.output[2] / self.groups]
    }

    /// Pixels under a window.
    pub(super) fn taps(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }

    /// Terms of one output value.
    pub(super) fn depth(&self) -> usize {
        self.taps() * self.group()[0]
    }

    pub(super) fn input_len(&self) -> usize {
        self.input.iter().product()
    }

    pub(super) fn output_len(&self) -> usize {
        self.output.iter().product()
    }

    pub(super) fn multiplications(&self) -> usize {
        self.batch * self.output_len() * self.depth()
    }

    /// The convolution that is this one's gradient to the input: of the result's gradient, with each filter turned around.
    /// None where windows skip pixels, or where the padding holds whole windows.
    pub(super) fn turned(&self) -> Option<Self> {
        let w = &self.window;
        if w.stride != [1, 1] {
            return None;
        }
        let padding = |axis: usize| w.span(axis)?.checked_sub(1 + w.padding[axis]);
        let window = Window { padding: [padding(0)?, padding(1)?], ..*w };
        Some(Self { input: self.output, output: self.input, window, ..*self })
    }

    /// Rows of the result in one block of about `pixels` pixels.
    pub(super) fn rows_of(&self, pixels: usize) -> usize {
        (pixels / self.output[1].max(1)).clamp(1, self.output[0].max(1))
    }
}
