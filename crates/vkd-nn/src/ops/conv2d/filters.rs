//! Filters in the order of the kernels, and back.

use super::geometry::Geometry;
use crate::ops::Real;

/// Position of `(filter o, row i, column j, channel c)` in PyTorch's order `(O, C / groups, kh, kw)`, for every position of
/// the kernels' order `(groups, kh, kw, C / groups, O / groups)`.
fn positions(g: &Geometry) -> impl Iterator<Item = usize> {
    let ([c, o], [kh, kw]) = (g.group(), g.window.kernel);
    (0..g.groups).flat_map(move |group| {
        (0..kh * kw).flat_map(move |tap| {
            (0..c).flat_map(move |c_| {
                (0..o).map(move |o_| ((group * o + o_) * c + c_) * kh * kw + tap)
            })
        })
    })
}

/// Filters as `groups` matrices of `(kh * kw * C / groups, O / groups)`.
pub(super) fn pack<T: Real>(g: &Geometry, weight: &[T]) -> Vec<T> {
    positions(g).map(|at| weight[at]).collect()
}

/// The filters of [`Geometry::turned`]: inputs and outputs exchanged, taps in reverse.
pub(super) fn pack_turned<T: Real>(g: &Geometry, weight: &[T]) -> Vec<T> {
    let ([c, o], [kh, kw]) = (g.group(), g.window.kernel);
    let mut packed = vec![T::zero(); weight.len()];
    for (source, at) in positions(g).enumerate() {
        let (o_, rest) = (source % o, source / o);
        let (c_, rest) = (rest % c, rest / c);
        let (tap, group) = (rest % (kh * kw), rest / (kh * kw));
        packed[((group * kh * kw + kh * kw - 1 - tap) * o + o_) * c + c_] = weight[at];
    }
    packed
}

/// Back to PyTorch's order.
pub(super) fn unpack<T: Real>(g: &Geometry, packed: &[T]) -> Vec<T> {
    let mut weight = vec![T::zero(); packed.len()];
    for (value, at) in packed.iter().zip(positions(g)) {
        weight[at] = *value;
    }
    weight
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::window::Window;

    #[test]
    fn turning_twice_is_packing() {
        let window = Window { kernel: [3, 2], stride: [1, 1], padding: [1, 0], dilation: [1, 1] };
        let g = Geometry { batch: 1, input: [5, 5, 4], output: [5, 4, 6], window, groups: 2 };
        let weight: Vec<f32> = (0..6 * 2 * 6).map(|i| i as f32).collect();
        let packed = pack(&g, &weight);
        assert_eq!(unpack(&g, &packed), weight);
        // Filter 3 is the first of group 1; its channel 1 at row 2, column 1.
        assert_eq!(packed[((6 + 5) * 2 + 1) * 3], weight[(3 * 2 + 1) * 6 + 5]);
        let turned = pack_turned(&g, &weight);
        assert_eq!(turned[(6 * 3) * 2 + 1], packed[((6 + 5) * 2 + 1) * 3]);
    }
}
