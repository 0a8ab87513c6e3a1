//! What is remembered of a translation, and counted.

use bpf_lb_abi::Translation;

use crate::{atomic::count, maps::BACKENDS};

/// Takes a socket that is closed, or goes elsewhere, off its backend's count, if it is on it.
#[inline(always)]
pub(crate) fn uncount<A>(translation: &Translation<A>) {
    if translation.id & Translation::<A>::COUNTED != 0 {
        uncount_counted(core::ptr::from_ref(translation));
    }
}

/// By pointer: what is called with a reference is taken to change nothing.
#[inline(never)]
fn uncount_counted<A>(translation: *const Translation<A>) {
    // SAFETY: it was a reference, and the socket's lock keeps its other calls out.
    let translation = unsafe { &*translation };
    set_id(translation, translation.id & !Translation::<A>::COUNTED);
    if let Some(backend) = BACKENDS.get(translation.id & Translation::<A>::ID)
        && backend.generation.load() == translation.generation
    {
        count(&backend.open, -1);
    }
}

/// Whether the backend's place has been given up: nothing leads to it again.
#[inline(always)]
pub(crate) fn is_over<A>(translation: &Translation<A>) -> bool {
    let backend = BACKENDS.get(translation.id & Translation::<A>::ID);
    backend.is_none_or(|backend| backend.generation.load() != translation.generation)
}

/// Changes the flags of a translation that is a socket's own.
#[inline(always)]
pub(crate) fn set_id<A>(translation: &Translation<A>, id: u32) {
    // SAFETY: the socket's lock keeps its other calls out.
    unsafe { (&raw const translation.id).cast_mut().write_volatile(id) }
}
