//! What ranks exchange, in threads.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use super::*;
use candle_core::{DType, Device, Tensor, Var};
use serde_json::json;
use std::collections::BTreeMap;
use vkd_nn::VarStore;

/// Runs `work` on every rank; results by rank.
fn on_each<T: Send>(size: usize, work: impl Fn(&Ranks) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let start = |ranks: Ranks| scope.spawn(move || work(&ranks));
        let threads: Vec<_> = thread_ranks(size).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn sums_answers_and_bytes_come_to_all() {
    for size in [1, 2, 5] {
        let found = on_each(size, |ranks| {
            let rank = ranks.rank() as f64;
            let (mut wide, mut narrow) = ([rank, 1.], [rank as f32]);
            ranks.sum(&mut wide).unwrap();
            ranks.sum_f32(&mut narrow).unwrap();
            ranks.barrier().unwrap();
            let answer = ranks.from_first(|| Ok(format!("of {}", ranks.rank()))).unwrap();
            let bytes = ranks.gather(&vec![7u8; ranks.rank()]).unwrap();
            assert!(ranks.any(ranks.leads()).unwrap() && !ranks.any(false).unwrap());
            assert_eq!(ranks.replicas().map(|r| (r.rank(), r.size())).is_some(), size > 1);
            (wide, narrow, answer, bytes.iter().map(Vec::len).collect::<Vec<_>>())
        });
        let sum = (size * (size - 1) / 2) as f64;
        for (wide, narrow, answer, lengths) in found {
            assert_eq!((wide, narrow), ([sum, size as f64], [sum as f32]));
            assert_eq!(answer, "of 0");
            assert_eq!(lengths, (0..size).collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_first_rank_s_error_is_everybody_s() {
    let found = on_each(3, |ranks| {
        let result: Result<u32> = ranks.from_first(|| bail!("full disk"));
        crate::plain(&result.unwrap_err())
    });
    assert_eq!(found, ["full disk", "rank 0: full disk", "rank 0: full disk"]);
}

#[test]
fn a_rank_that_is_gone_is_named_and_nobody_waits() {
    let mut ranks = thread_ranks(3);
    drop(ranks.remove(1));
    let found: Vec<String> = std::thread::scope(|scope| {
        let start = |ranks: Ranks| scope.spawn(move || ranks.barrier().unwrap_err().to_string());
        let threads: Vec<_> = ranks.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(found.iter().all(|e| e.contains("expected rank 1 to go on")), "{found:?}");
}

#[test]
fn gradients_are_means_in_buckets_of_any_size() {
    for dtype in [DType::F32, DType::F64] {
        for bucket in [1, 24, 1 << 20] {
            let found = on_each(2, |ranks| {
                let rank = ranks.rank() as f64;
                let var = |n: usize| Var::zeros(n, dtype, &Device::Cpu).unwrap();
                let all = [3, 1, 4, 2].map(var);
                let parameters: Vec<(String, Var)> =
                    (0..).zip(&all).map(|(i, v): (u32, &Var)| (i.to_string(), v.clone())).collect();
                // The third one has a gradient on one rank alone, the last on none.
                let mut loss = ((all[0].as_tensor() * (rank + 1.)).unwrap().sum_all()).unwrap();
                loss = (loss + (all[1].as_tensor() * 4.).unwrap().sum_all().unwrap()).unwrap();
                if ranks.leads() {
                    loss = (loss + all[2].as_tensor().sum_all().unwrap()).unwrap();
                }
                let mut grads = loss.backward().unwrap();
                ranks.mean_gradients(&parameters, &mut grads, bucket).unwrap();
                let grad = |v: &Var| -> Option<Vec<f64>> {
                    grads.get(v).map(|g| g.to_dtype(DType::F64).unwrap().to_vec1().unwrap())
                };
                (all.iter().map(grad).collect::<Vec<_>>(), ranks.traffic())
            });
            let want = [Some(vec![1.5; 3]), Some(vec![4.]), Some(vec![0.5; 4]), None];
            for (grads, traffic) in found {
                assert_eq!(grads, want, "{dtype:?} {bucket}");
                let numbers = 8 * dtype.size_in_bytes() as u64;
                assert_eq!(traffic.bytes, 4 * 8 + numbers);
                let calls = match (bucket, dtype) {
                    (1, _) => 3,
                    (24, DType::F64) => 3,
                    (24, _) => 2,
                    _ => 1,
                };
                assert_eq!(traffic.calls, 1 + calls, "{dtype:?} {bucket}");
            }
        }
    }
}

#[test]
fn ranks_that_differ_are_named() {
    let found = on_each(3, |ranks| {
        let mut settings = BTreeMap::from([("recipe.seed".to_owned(), json!(3))]);
        ranks.agree(&settings).unwrap();
        if ranks.rank() == 2 {
            settings.insert("data.hash".to_owned(), json!("other"));
        }
        let of_settings = ranks.agree(&settings).unwrap_err().to_string();
        let store = VarStore::new(1, DType::F32, &Device::Cpu);
        for name in ["a", "b", "c"] {
            store.builder().get_with_hints(2, name, candle_nn::Init::Const(1.)).unwrap();
        }
        ranks.same_tensors(&store.tensors()).unwrap();
        if ranks.rank() == 1 {
            let (_, var) = store.parameters().into_iter().find(|(name, _)| name == "b").unwrap();
            // The last bit of one number.
            let moved = [1f32, f32::from_bits(1f32.to_bits() + 1)];
            var.set(&Tensor::new(&moved, &Device::Cpu).unwrap()).unwrap();
        }
        (of_settings, ranks.same_tensors(&store.tensors()).unwrap_err().to_string())
    });
    for (settings, variables) in found {
        assert!(
            settings.contains(
                "data.hash: expected the same on all, got null on rank 0 and \"other\" on rank 2"
            ),
            "{settings}"
        );
        assert!(variables.contains("got another b on rank 1 than on rank 0"), "{variables}");
    }
}

#[test]
fn pieces_come_in_their_order_and_one_error_is_everybody_s() {
    let piece = |number: usize| {
        let dims = (number, 2);
        Ok(Some([
            Tensor::full(number as f64, dims, &Device::Cpu)?,
            Tensor::full(number as u32, 1, &Device::Cpu)?,
        ]))
    };
    for size in [1, 2, 3, 8] {
        for count in [0, 1, 5, 6] {
            let found = on_each(size, |ranks| {
                let (mut made, mut taken) = (Vec::new(), Vec::new());
                let make = |number| {
                    made.push(number);
                    // The third has nothing, the first has tensors of no elements.
                    if number == 2 { Ok(None) } else { piece(number) }
                };
                let take = |[wide, one]: [Tensor; 2]| {
                    assert_eq!((wide.dtype(), one.dtype()), (DType::F64, DType::U32));
                    assert_eq!(wide.dims()[1], 2);
                    taken.push((one.to_vec1::<u32>()?[0] as usize, wide.dims()[0]));
                    Ok(())
                };
                ranks.in_turn(count, make, take).unwrap();
                (made, taken)
            });
            let want: Vec<_> = (0..count).filter(|n| *n != 2).map(|n| (n, n)).collect();
            for (rank, (made, taken)) in found.into_iter().enumerate() {
                assert_eq!(made, (rank..count).step_by(size).collect::<Vec<_>>());
                assert_eq!(taken, if rank == 0 { &want[..] } else { &[] });
            }
        }
    }
    let said = |make_fails: bool| -> Vec<String> {
        on_each(3, |ranks| {
            let make = |number| match number {
                4 if make_fails => bail!("piece {number}"),
                _ => piece(number),
            };
            let take = |_: [Tensor; 2]| match make_fails {
                true => Ok(()),
                false => bail!("taken"),
            };
            crate::plain(&ranks.in_turn(7, make, take).unwrap_err())
        })
    };
    assert_eq!(said(true), ["rank 1: piece 4", "piece 4", "rank 1: piece 4"]);
    assert_eq!(said(false), ["taken", "rank 0: taken", "rank 0: taken"]);
}
