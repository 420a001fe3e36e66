//! Convolutions on a CUDA device.

use super::Geometry;
use super::products::{Kind, Products};
use candle_core::{Result, Tensor};
use vkd_norm::program::Source;

const SOURCE: Source =
    Source { module: "vkd_nn::conv2d", ptx: include_str!(concat!(env!("OUT_DIR"), "/conv2d.ptx")) };

/// The op `kind` with the sizes of a convolution.
pub(crate) fn convolution(
    geometry: Geometry,
    kind: Kind,
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (xs, weight) = (xs.contiguous()?, weight.contiguous()?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    Products::new(geometry).record(SOURCE, kind, (&xs, &weight, bias.as_ref()))
}
