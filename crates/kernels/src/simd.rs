//! Run-time choice of the instruction set for our own loops.
//!
//! rustc compiles for baseline x86-64 (SSE2). [`simd_fn!`](crate::simd_fn) compiles a loop a second
//! time for AVX2 and FMA and picks one at run time: 2 to 2.5 times on memory-light loops.

/// Whether this machine runs the wide version of a [`simd_fn!`](crate::simd_fn).
#[inline]
#[must_use]
pub fn wide() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Defines a function whose body is compiled for the baseline and for AVX2 + FMA.
///
/// Inside the body the constant `FMA` tells which one it is; hand it on to the functions of
/// [`vecmath`](crate::vecmath). Only what is inlined profits: keep the body a plain loop.
///
/// ```
/// use kiln_kernels::{simd_fn, vecmath};
/// simd_fn! {
///     /// y += a·x
///     fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
///         for (y, x) in y.iter_mut().zip(x) {
///             *y = vecmath::mul_add::<FMA>(a, *x, *y);
///         }
///     }
/// }
/// let mut y = [1.0, 2.0];
/// axpy(2.0, &[1.0, 1.0], &mut y);
/// assert_eq!(y, [3.0, 4.0]);
/// ```
#[macro_export]
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn wide($($arg: $ty),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                if $crate::simd::wide() {
                    #[expect(unsafe_code, reason = "calls a function compiled for more features than the baseline")]
                    // SAFETY: `wide()` has just found both features on this machine.
                    return unsafe { wide($($arg),*) };
                }
            }
            body::<false>($($arg),*)
        }
    };
}
