//! Words that one side writes while the other reads them.
#![cfg_attr(target_arch = "bpf", expect(unsafe_code, reason = "Rust's BPF target has no atomic loads"))]

macro_rules! word {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $atomic:ty) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[repr(transparent)]
        pub struct $name(
            #[cfg(target_arch = "bpf")] core::cell::UnsafeCell<$inner>,
            #[cfg(not(target_arch = "bpf"))] $atomic,
        );

        // SAFETY: the machine reads and writes aligned words whole.
        #[cfg(target_arch = "bpf")]
        unsafe impl Sync for $name {}

        #[cfg(target_arch = "bpf")]
        impl $name {
            /// A word with that value.
            pub const fn new(value: $inner) -> Self {
                Self(core::cell::UnsafeCell::new(value))
            }

            /// Reads the word. What is read through the value is ordered after it.
            #[inline(always)]
            pub fn load(&self) -> $inner {
                // SAFETY: see `Sync`.
                unsafe { self.0.get().read_volatile() }
            }

            /// Writes the word.
            #[inline(always)]
            pub fn store(&self, value: $inner) {
                // SAFETY: see `Sync`.
                unsafe { self.0.get().write_volatile(value) }
            }

            /// Where it is, for the atomic instructions.
            #[inline(always)]
            pub fn as_ptr(&self) -> *mut $inner {
                self.0.get()
            }
        }

        #[cfg(not(target_arch = "bpf"))]
        impl $name {
            /// A word with that value.
            pub const fn new(value: $inner) -> Self {
                Self(<$atomic>::new(value))
            }

            /// Reads the word, and orders what follows after it.
            pub fn load(&self) -> $inner {
                self.0.load(core::sync::atomic::Ordering::Acquire)
            }

            /// Adds to the word, which others add to at the same time.
            pub fn add(&self, value: $inner) {
                self.0.fetch_add(value, core::sync::atomic::Ordering::Relaxed);
            }

            /// Adds what was counted in another word, where it is no more then. Nobody adds to that one.
            pub fn take(&self, other: &Self) {
                self.add(other.load());
                other.store(0);
            }

            /// Writes the word, after all that came before.
            pub fn store(&self, value: $inner) {
                self.0.store(value, core::sync::atomic::Ordering::Release)
            }
        }
    };
}

word!(
    /// A byte in a map.
    Byte, u8, core::sync::atomic::AtomicU8
);
word!(
    /// A 32-bit word in a map.
    Word, u32, core::sync::atomic::AtomicU32
);
word!(
    /// A 64-bit word in a map.
    Long, u64, core::sync::atomic::AtomicU64
);
