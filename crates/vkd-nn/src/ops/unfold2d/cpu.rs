//! Gathering windows and scattering their gradients, on slices.

use crate::ops::{Real, for_chunks};

#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) padding: usize,
}

/// Calls `visit(offset in the image, offset in the windows)` for every window row that lies inside the image: `C` values
/// each, consecutive on both sides.
fn visit(input: [usize; 4], output: [usize; 4], w: Window, mut visit: impl FnMut(usize, usize)) {
    let [_, height, width, c] = input;
    let [_, rows, cols, window] = output;
    for y in 0..rows {
        for x in 0..cols {
            let target = (y * cols + x) * window;
            for i in 0..w.kernel {
                let Some(row) = (y * w.stride + i).checked_sub(w.padding).filter(|r| *r < height)
                else {
                    continue;
                };
                for j in 0..w.kernel {
                    let Some(col) =
                        (x * w.stride + j).checked_sub(w.padding).filter(|c| *c < width)
                    else {
                        continue;
                    };
                    visit((row * width + col) * c, target + (i * w.kernel + j) * c);
                }
            }
        }
    }
}

fn image(dims: [usize; 4]) -> usize {
    dims[1] * dims[2] * dims[3]
}

pub(super) fn unfold<T: Real>(
    xs: &[T],
    input: [usize; 4],
    output: [usize; 4],
    w: Window,
) -> Vec<T> {
    let (c, image_len) = (input[3], image(input));
    let mut out = vec![T::zero(); output[0] * image(output)];
    for_chunks(&mut out, image(output), |b, out| {
        let xs = &xs[b * image_len..][..image_len];
        visit(input, output, w, |from, to| out[to..to + c].copy_from_slice(&xs[from..from + c]));
    });
    out
}

pub(super) fn fold<T: Real>(
    grad: &[T],
    input: [usize; 4],
    output: [usize; 4],
    w: Window,
) -> Vec<T> {
    let (c, windows_len) = (input[3], image(output));
    let mut out = vec![T::zero(); input[0] * image(input)];
    for_chunks(&mut out, image(input), |b, out| {
        let grad = &grad[b * windows_len..][..windows_len];
        visit(input, output, w, |to, from| {
            for (o, g) in out[to..to + c].iter_mut().zip(&grad[from..from + c]) {
                *o += *g;
            }
        });
    });
    out
}
