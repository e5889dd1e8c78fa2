//! The masked velocity loss.

#![expect(clippy::unwrap_used, reason = "helpers outside the test functions fail as loudly")]

mod support;
use kiln_kernels::{velocity_loss, velocity_loss_per_sample};
use support::*;

fn mask() -> Tensor {
    Tensor::new(&[[1f32, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0]], &Device::Cpu).unwrap()
}

/// training.md §2.8, word by word.
fn composed(pred: &Tensor, target: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let mask = mask.to_dtype(pred.dtype())?;
    let e = (pred - target.to_dtype(pred.dtype())?)?.sqr()?.mean(2)?;
    let share = mask.mean(1)?.maximum(1e-8)?;
    ((e * mask)?.mean(1)? / share)?.mean(0)
}

#[test]
fn the_loss_is_the_mean_over_the_tokens_that_count() {
    for channels in [1, 6, 129] {
        let (pred, target) = (f32s(&[2, 5, channels], 1), f32s(&[2, 5, channels], 2));
        let want = composed(&wide(&pred), &target, &mask()).unwrap();
        let loss = velocity_loss(&pred, &target, &mask()).unwrap();
        assert_eq!((loss.dtype(), loss.rank()), (DType::F32, 0));
        assert_close("f32", &loss, &want, Tol::elementwise());
        assert_close(
            "f64",
            &velocity_loss(&wide(&pred), &target, &mask()).unwrap(),
            &want,
            Tol::elementwise(),
        );
        let bytes = mask().to_dtype(DType::U8).unwrap();
        assert_close("u8 mask", &velocity_loss(&pred, &target, &bytes).unwrap(), &want, Tol::elementwise());
    }
}

#[test]
fn gradients_equal_finite_differences_and_the_composition() {
    let (pred, target) = (random(&[2, 5, 7], 1).unwrap(), f32s(&[2, 5, 7], 2));
    gradients("velocity_loss", one(&pred), |x| velocity_loss(&x[0], &target, &mask()));
    same_gradients(
        "velocity_loss",
        Tol::elementwise(),
        &[pred],
        |x| velocity_loss(&x[0], &target, &mask()),
        |x| composed(&x[0], &target, &mask()),
    );
}

#[test]
fn a_bf16_prediction_loses_nothing_in_the_sum() {
    // 65,536 bf16 ones would add up to 256.
    let pred = Tensor::ones((1, 8192, 8), DType::BF16, &Device::Cpu).unwrap();
    let target = Tensor::zeros((1, 8192, 8), DType::F32, &Device::Cpu).unwrap();
    let mask = Tensor::ones((1, 8192), DType::F32, &Device::Cpu).unwrap();
    let loss = velocity_loss(&pred, &target, &mask).unwrap();
    assert_eq!((loss.dtype(), loss.to_scalar::<f32>().unwrap()), (DType::F32, 1.0));
}

#[test]
fn what_stands_at_a_token_that_does_not_count_does_not_matter() {
    let mut values = vec![1f32; 10];
    values[2] = f32::NAN;
    let pred = Tensor::from_vec(values, (1, 5, 2), &Device::Cpu).unwrap();
    let target = Tensor::zeros((1, 5, 2), DType::F32, &Device::Cpu).unwrap();
    let mask = mask().narrow(0, 0, 1).unwrap();
    assert_eq!(velocity_loss(&pred, &target, &mask).unwrap().to_scalar::<f32>().unwrap(), 1.0);
    let grad = &backward(&[pred], |x| velocity_loss(&x[0], &target, &mask)).unwrap()[0];
    assert!(grad.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|g| g.is_finite()));
}

#[test]
fn an_empty_mask_gives_zero_not_nan() {
    let pred = f32s(&[1, 4, 3], 1);
    let mask = Tensor::zeros((1, 4), DType::F32, &Device::Cpu).unwrap();
    let loss = velocity_loss(&pred, &pred.zeros_like().unwrap(), &mask).unwrap();
    assert_eq!(loss.to_scalar::<f32>().unwrap(), 0.0);
}

#[test]
fn the_losses_of_the_samples_have_the_batch_loss_as_their_mean() {
    let (pred, target) = (f32s(&[2, 5, 7], 1), f32s(&[2, 5, 7], 2));
    let each = velocity_loss_per_sample(&pred, &target, &mask()).unwrap();
    assert_eq!(each.dims(), [2]);
    let whole = velocity_loss(&pred, &target, &mask()).unwrap();
    assert_close("mean", &each.mean(0).unwrap(), &whole, Tol::elementwise());
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let (pred, target) = (f32s(&[2, 5, 7], 1), f32s(&[2, 5, 7], 2));
    let said = |result: Result<Tensor>, words: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    said(velocity_loss(&pred, &f32s(&[2, 5, 6], 1), &mask()), "target has shape [2, 5, 6]");
    said(velocity_loss(&pred, &target, &f32s(&[2, 4], 1)), "mask has shape [2, 4], expected [2, 5]");
    let tracked = Var::from_tensor(&target).unwrap();
    said(velocity_loss(&pred, &tracked, &mask()), "target is tracked for gradients");
}
