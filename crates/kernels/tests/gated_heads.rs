//! The gate on each head's output.

#![expect(clippy::unwrap_used, reason = "helpers outside the test functions fail as loudly")]

mod support;
use kiln_kernels::gated_heads;
use support::*;

fn composed(o: &Tensor, logits: &Tensor) -> Result<Tensor> {
    let (b, t, width) = o.dims3()?;
    let heads = logits.dim(2)?;
    let gate = ((logits.neg()?.exp()? + 1.0)?.recip()? * 2.0)?.unsqueeze(3)?;
    o.reshape((b, t, heads, width / heads))?.broadcast_mul(&gate)?.reshape((b, t, width))
}

#[test]
fn each_head_is_scaled_by_twice_the_sigmoid_of_its_logit() {
    for (b, t, h, d) in [(1, 1, 1, 1), (2, 3, 4, 5), (1, 7, 3, 32)] {
        let inputs = [f32s(&[b, t, h * d], 1), f32s(&[b, t, h], 2)];
        let op = |x: &[Tensor]| gated_heads(&x[0], &x[1]);
        forward_agrees("gated_heads", Tol::elementwise(), &inputs, op);
        same_gradients("gated_heads", Tol::reduced(), &inputs, op, |x| composed(&x[0], &x[1]));
        gradients("gated_heads", &inputs.map(|t| wide(&t)), op);
    }
}

#[test]
fn scattered_inputs_are_handled() {
    let (o, logits) = (f32s(&[2, 3, 8], 1), f32s(&[2, 3, 4], 2));
    let got = gated_heads(&scattered(&o), &scattered(&logits)).unwrap();
    assert_close("scattered", &got, &gated_heads(&o, &logits).unwrap(), Tol::exact());
}

#[test]
fn logits_of_another_length_are_refused() {
    for shape in [[2, 4, 4], [2, 3, 3]] {
        let error = gated_heads(&f32s(&[2, 3, 8], 1), &f32s(&shape, 2)).unwrap_err().to_string();
        assert!(error.contains("logits has shape"), "{error}");
    }
}
