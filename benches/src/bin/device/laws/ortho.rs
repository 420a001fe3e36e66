//! The maps of vkd-ortho, and the weight that a layer makes of one.

use super::{Case, FLOATS, one, shown};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use std::collections::HashMap;
use vkd_ortho::{
    OrthogonalConfig, OrthogonalMap, Stiefel, cayley, householder_product, matrix_exp, reference,
    sample_stiefel,
};
use vkd_testkit::{check_frame, normal_scaled};

type Map = fn(&Tensor) -> Result<Tensor>;

const MAPS: [(&str, Map, Map); 3] = [
    ("cayley", cayley, reference::cayley),
    ("matrix_exp", matrix_exp, reference::matrix_exp),
    ("householder_product", householder_product, reference::householder_product),
];

/// The twins make n x n matrices; above this the op itself is the oracle.
const TWIN: usize = 300;

pub(super) fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    let shapes: [&[usize]; 10] = [
        &[1, 1],
        &[5, 1],
        &[8, 8],
        &[33, 7],
        &[3, 9, 4],
        &[2, 3, 7, 5],
        &[127, 33],
        &[257, 64],
        &[256, 256],
        &[3024, 192],
    ];
    for (name, map, twin) in MAPS {
        for dims in shapes {
            for scale in [1e-3, 0.1, 1.] {
                let n = dims[dims.len() - 2];
                // Of one entry the product of reflectors is a constant.
                if n == 1 && name == "householder_product" {
                    continue;
                }
                let inputs = vec![normal_scaled(dims, DType::F32, 5, scale)?];
                let what = format!("{name} {} at {scale}", shown(dims));
                let op = framed(what.clone(), map);
                if n <= TWIN {
                    let case = Case::new(format!("{what}, twin"), inputs.clone(), 1, n, op.clone());
                    let case = case.against(one(move |x| twin(&x[0])));
                    // The twin's own: n x n inverses and powers, whose condition grows with the scale.
                    all.push(case.of_dtypes(&[DType::F64]).with_gain(100.));
                }
                let case = || Case::new(what.clone(), inputs.clone(), 1, n, op.clone());
                if name == "matrix_exp" {
                    // Each doubling of the argument doubles what rounding has left, so that it is in proportion to the norm, here of
                    // normal entries. It shows where nothing is rounded afterwards.
                    let k = dims[dims.len() - 1];
                    let norm = scale * ((n as f64).sqrt() + (k as f64).sqrt());
                    all.push(case().of_dtypes(&[DType::F64]).with_gain(1. + norm));
                    all.push(case().of_dtypes(&FLOATS[1..]));
                } else {
                    all.push(case());
                }
            }
        }
    }
    for (rows, columns) in [(33, 7), (7, 33), (64, 64), (768, 192)] {
        for map in [OrthogonalMap::Cayley, OrthogonalMap::MatrixExp, OrthogonalMap::Householder] {
            all.push(layer(rows, columns, map)?);
        }
    }
    Ok(all)
}

/// A map whose every result must be a frame.
fn framed(
    what: String,
    map: Map,
) -> impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Clone + Send + Sync + 'static {
    move |x: &[Tensor]| {
        let q = map(&x[0])?;
        check_frame(&what, &q.detach().to_device(&Device::Cpu)?, &x[0].detach())?;
        Ok(vec![q])
    }
}

/// A layer's weight, from its parameter and a base that both sides are given.
fn layer(rows: usize, columns: usize, map: OrthogonalMap) -> Result<Case> {
    let (n, k) = (rows.max(columns), rows.min(columns));
    let raw = normal_scaled(&[n, k], DType::F32, 3, 0.1)?;
    let base = sample_stiefel(n, k, 4, DType::F32, &Device::Cpu)?;
    let weight = move |x: &[Tensor]| {
        let tensors =
            HashMap::from([("raw".to_owned(), x[0].clone()), ("base".to_owned(), x[1].clone())]);
        let vb = VarBuilder::from_tensors(tensors, x[0].dtype(), x[0].device());
        Stiefel::new(rows, columns, OrthogonalConfig::new(map, 1), vb)?.weight()
    };
    let name = format!("stiefel {rows}x{columns} {map}");
    Ok(Case::new(name, vec![raw, base], 1, n, one(weight)).of_dtypes(&FLOATS[..2]))
}
