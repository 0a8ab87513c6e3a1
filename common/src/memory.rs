//! What the allocator keeps.

/// Gives back to the kernel what was freed: for when something large has gone that does not come again soon.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "nix has no safe function")]
    // SAFETY: takes a number only.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
