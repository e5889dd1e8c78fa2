//! Rearrangements against their index formulas.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use candle_core::{Device, Tensor};
use kiln_kernels::{depth_to_space, patchify, space_to_depth_add_mean, unpatchify};

fn counted(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::from_iter((0..count).map(|i| (i * 7919 % 4001) as f32), &Device::Cpu)
        .unwrap()
        .reshape(shape)
        .unwrap()
}

fn at(t: &Tensor, place: [usize; 5]) -> f32 {
    let flat = place.iter().zip(t.dims()).fold(0, |flat, (i, size)| flat * size + i);
    t.flatten_all().unwrap().get(flat).unwrap().to_scalar().unwrap()
}

#[test]
fn patches_put_the_column_offset_before_the_row_offset() {
    let x = counted(&[2, 3, 2, 8, 12]);
    let y = patchify(&x, 4).unwrap();
    assert_eq!(y.dims(), [2, 2, 2, 3, 48]);
    for (b, f, r, c, ch) in [(0, 0, 0, 0, 0), (1, 1, 1, 2, 47), (0, 1, 1, 0, 17), (1, 0, 0, 2, 30)] {
        let (colour, dx, dy) = (ch / 16, ch / 4 % 4, ch % 4);
        assert_eq!(at(&y, [b, f, r, c, ch]), at(&x, [b, colour, f, r * 4 + dy, c * 4 + dx]));
    }
    let back = unpatchify(&y, 4).unwrap();
    assert_eq!(
        back.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    );
}

#[test]
fn depth_to_space_spreads_each_channel_and_drops_the_first_frames() {
    let x = counted(&[2, 3, 2, 2, 24]);
    for (stride, drop) in [([2, 2, 2], 1), ([2, 1, 1], 1), ([1, 2, 2], 0), ([1, 1, 1], 0), ([2, 3, 1], 2)] {
        let s: usize = stride.iter().product();
        let y = depth_to_space(&x, stride, drop).unwrap();
        let channels = 24 / s;
        assert_eq!(y.dims(), [2, 3 * stride[0] - drop, 2 * stride[1], 2 * stride[2], channels]);
        let (_, frames, rows, columns, _) = y.dims5().unwrap();
        for (b, f, r, c, ch) in [
            (0, 0, 0, 0, 0),
            (1, frames - 1, rows - 1, columns - 1, channels - 1),
            (1, 1, 1, 0, channels / 2),
        ] {
            let g = f + drop;
            let p = (g % stride[0] * stride[1] + r % stride[1]) * stride[2] + c % stride[2];
            let from = [b, g / stride[0], r / stride[1], c / stride[2], ch * s + p];
            assert_eq!(at(&y, [b, f, r, c, ch]), at(&x, from), "{stride:?}");
        }
    }
}

#[test]
fn space_to_depth_adds_the_group_means_of_the_skip() {
    for (stride, lead, cy, cx) in
        [([1, 2, 2], 0, 2, 4), ([2, 1, 1], 1, 4, 4), ([2, 2, 2], 1, 1, 8), ([2, 2, 2], 1, 3, 3)]
    {
        let s: usize = stride.iter().product();
        let y = counted(&[2, 3 + lead, 4, 6, cy]);
        let x = counted(&[2, 3, 4, 6, cx]);
        let got =
            space_to_depth_add_mean(&y.narrow(1, 0, (3 + lead) / stride[0] * stride[0]).unwrap(), &x, stride);
        if (3 + lead) % stride[0] != 0 {
            assert!(got.is_err());
            continue;
        }
        let got = got.unwrap();
        assert_eq!(got.dims(), [2, (3 + lead) / stride[0], 4 / stride[1], 6 / stride[2], cy * s]);
        let group = cx / cy;
        for (b, f, r, c, ch) in [(0, 0, 0, 0, 0), (1, 1, 1, 2, cy * s - 1), (0, 1, 0, 1, cy)] {
            let place = |q: usize| {
                let p = q % s;
                let (i, j, k) = (p / (stride[1] * stride[2]), p / stride[2] % stride[1], p % stride[2]);
                (f * stride[0] + i, r * stride[1] + j, c * stride[2] + k, q / s)
            };
            let (yf, yr, yc, ych) = place(ch);
            let mut want = f64::from(at(&y, [b, yf, yr, yc, ych]));
            for i in 0..group {
                let (xf, xr, xc, xch) = place(ch * group + i);
                want += f64::from(at(&x, [b, xf.saturating_sub(lead), xr, xc, xch])) / group as f64;
            }
            let got = f64::from(at(&got, [b, f, r, c, ch]));
            assert!((got - want).abs() < 1e-2, "{stride:?}: {got} for {want}");
        }
    }
}

#[test]
fn sizes_that_do_not_divide_are_refused() {
    assert!(patchify(&counted(&[1, 3, 1, 6, 8]), 4).unwrap_err().to_string().contains("divisible by 4"));
    assert!(unpatchify(&counted(&[1, 1, 2, 2, 15]), 4).is_err());
    assert!(depth_to_space(&counted(&[1, 1, 2, 2, 15]), [2, 2, 2], 0).is_err());
    assert!(depth_to_space(&counted(&[1, 1, 2, 2, 8]), [2, 2, 2], 2).is_err());
    let (y, x) = (counted(&[1, 2, 2, 3, 4]), counted(&[1, 2, 2, 3, 4]));
    assert!(space_to_depth_add_mean(&y, &x, [1, 2, 2]).is_err());
}
