//! Filters in the order of the kernels, and back.
//!
//! PyTorch's order is `(O, C / groups, kh, kw)`; the kernels read one filter as its taps, each with its channels side by
//! side, as the pixels of an image are.

use super::geometry::Geometry;
use crate::ops::{Real, for_chunks};

/// `(O, C / groups, kh, kw)` to `(O, kh, kw, C / groups)`.
pub(super) fn pack<T: Real>(g: &Geometry, weight: &[T]) -> Vec<T> {
    let (c, taps) = (g.group()[0], g.taps());
    let mut packed = vec![T::zero(); weight.len()];
    for_chunks(&mut packed, g.depth(), |o, filter| {
        let source = &weight[o * taps * c..][..taps * c];
        for (tap, pixel) in filter.chunks_exact_mut(c).enumerate() {
            for (value, channel) in pixel.iter_mut().zip(source.chunks_exact(taps)) {
                *value = channel[tap];
            }
        }
    });
    packed
}

/// The filters of [`Geometry::turned`], `(C, kh, kw, O / groups)`: inputs and outputs exchanged, taps in reverse.
pub(super) fn pack_turned<T: Real>(g: &Geometry, weight: &[T]) -> Vec<T> {
    let ([c, o], taps) = (g.group(), g.taps());
    let mut packed = vec![T::zero(); weight.len()];
    for_chunks(&mut packed, taps * o, |at, filter| {
        let (group, channel) = (at / c, at % c);
        for o_ in 0..o {
            let source = &weight[((group * o + o_) * c + channel) * taps..][..taps];
            for (tap, value) in source.iter().rev().enumerate() {
                filter[tap * o + o_] = *value;
            }
        }
    });
    packed
}

/// Back to PyTorch's order.
pub(super) fn unpack<T: Real>(g: &Geometry, packed: &[T]) -> Vec<T> {
    let (c, taps) = (g.group()[0], g.taps());
    let mut weight = vec![T::zero(); packed.len()];
    for_chunks(&mut weight, g.depth(), |o, filter| {
        let source = &packed[o * taps * c..][..taps * c];
        for (channel, tap_values) in filter.chunks_exact_mut(taps).enumerate() {
            for (value, pixel) in tap_values.iter_mut().zip(source.chunks_exact(c)) {
                *value = pixel[channel];
            }
        }
    });
    weight
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::window::Window;

    #[test]
    fn every_weight_has_its_place() {
        let window = Window { kernel: [3, 2], stride: [1, 1], padding: [1, 0], dilation: [1, 1] };
        let g = Geometry { batch: 1, input: [5, 5, 4], output: [5, 4, 6], window, groups: 2 };
        let weight: Vec<f32> = (0..6 * 2 * 6).map(|i| i as f32).collect();
        let packed = pack(&g, &weight);
        assert_eq!(unpack(&g, &packed), weight);
        // Filter 3 is the first of group 1; its channel 1 at row 2, column 1 is the last tap.
        let value = weight[(3 * 2 + 1) * 6 + 5];
        assert_eq!(packed[(3 * 6 + 5) * 2 + 1], value);
        assert_eq!(pack_turned(&g, &weight)[(2 + 1) * 6 * 3], value);
    }
}
