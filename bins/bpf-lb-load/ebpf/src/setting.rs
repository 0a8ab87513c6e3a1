//! What the loader sets before the programs are there, and nobody after that.

/// The value of such a static, which is not what the compiler sees.
#[inline(always)]
pub(crate) fn setting<T: Copy>(of: &'static T) -> T {
    // SAFETY: a reference can be read from.
    unsafe { core::ptr::from_ref(of).read_volatile() }
}
