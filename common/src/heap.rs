//! The memory of the tools that a CNI call starts.

use std::{
    alloc::{GlobalAlloc, Layout},
    sync::{Mutex, MutexGuard, PoisonError},
};

use dlmalloc::Dlmalloc;

/// In place of musl's own, which asks the kernel for memory some forty times where a tool reads one document; and with a lock
/// that is a word, since a tool has one thread and takes it thousands of times.
struct Heap(Mutex<Dlmalloc>);

#[global_allocator]
static HEAP: Heap = Heap(Mutex::new(Dlmalloc::new()));

impl Heap {
    fn lock(&self) -> MutexGuard<'_, Dlmalloc> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(unsafe_code, reason = "an allocator's methods are")]
// SAFETY: what holds of the arguments is the same for both.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { self.lock().malloc(layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe { self.lock().calloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { self.lock().free(memory, layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe { self.lock().realloc(memory, layout.size(), layout.align(), size) }
    }
}
