//! What does not fit into a socket's place in `peers`, in socket-local storage. Few sockets have any, so all of it is in
//! functions that the programs call, and that are not made a part of each.

use core::hint::cold_path;

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::bpf_sk_storage_get,
};
use bpf_lb_abi::{Config, Endpoint, FLOWS, Overflow, Translation, is_mapped};

use crate::{
    maps::{CONFIG, OVERFLOW},
    translation::{is_over, uncount},
};

/// All addresses are IPv6 here, or IPv4-mapped.
pub(crate) type Wide = [u32; 4];

const FLOW: u32 = Translation::<Wide>::FLOW;
const HIDDEN: u32 = Translation::<Wide>::HIDDEN;

/// Does something with each flow, without a loop: the verifier lets programs without CAP_PERFMON add to a pointer only what
/// is the same each time. So that this is short, what is done is a function that is called.
macro_rules! each_flow {
    ($overflow:ident, $flow:ident => $body:block) => {
        each_flow!($overflow, $flow, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($overflow:ident, $flow:ident, $body:block, $($index:literal)*) => {
        const { assert!(FLOWS == [$($index),*].len()) };
        $({
            // SAFETY: see `storage`; nothing else of it is borrowed meanwhile.
            let $flow = unsafe { &mut *(&raw mut (*$overflow).flows[$index]) };
            $body
        })*
    };
}

/// Whether any socket has ever had anything here.
#[inline(always)]
pub(crate) fn overflowed(config: &Config) -> bool {
    if config.overflowed.load() != 0 {
        cold_path();
        return true;
    }
    false
}

#[inline(always)]
fn storage(socket: *mut bpf_sock, create: bool) -> Option<&'static mut Overflow> {
    let flags = if create { u64::from(BPF_SK_STORAGE_GET_F_CREATE) } else { 0 };
    if socket.is_null() {
        return None;
    }
    if create && let Some(config) = CONFIG.get(0) {
        config.overflowed.store(1);
    }
    // SAFETY: the map is one of socket-local storage whose values are `Overflow`; they live as long as the socket, which
    // is held while the program runs, and the socket's lock keeps its other calls out.
    unsafe {
        bpf_sk_storage_get((&raw const OVERFLOW).cast_mut().cast(), socket.cast(), core::ptr::null_mut(), flags)
            .cast::<Overflow>()
            .as_mut()
    }
}

/// The translation of a flow to `service`, or of a connection unless only `flows` are looked for.
#[inline(always)]
pub(crate) fn to(socket: *mut bpf_sock, service: &Endpoint<Wide>, flows: bool) -> Option<&'static Translation<Wide>> {
    find_service(storage(socket, false)?, service, flows)
}

/// The connection to `backend`.
#[inline(always)]
pub(crate) fn connection(socket: *mut bpf_sock, backend: &Endpoint<Wide>) -> Option<&'static Translation<Wide>> {
    find_connection(storage(socket, false)?, backend)
}

/// A translation to `backend`, or only the one for which it `answers`.
#[inline(always)]
pub(crate) fn by(socket: *mut bpf_sock, backend: &Endpoint<Wide>, answers: bool) -> Option<&'static Translation<Wide>> {
    find_backend(storage(socket, false)?, backend, answers)
}

// One function for each end, since the verifier lets no program without CAP_PERFMON choose between two pointers.

#[inline(never)]
fn find_connection(overflow: *mut Overflow, backend: &Endpoint<Wide>) -> Option<&'static Translation<Wide>> {
    // SAFETY: see `storage`.
    let (connection, before) = unsafe { (&(*overflow).connection, &(*overflow).before) };
    if connection.backend == *backend {
        return Some(connection);
    }
    if before.backend == *backend {
        return Some(before);
    }
    None
}

#[inline(never)]
fn find_service(overflow: *mut Overflow, service: &Endpoint<Wide>, flows: bool) -> Option<&'static Translation<Wide>> {
    // SAFETY: see `storage`.
    let (connection, before) = unsafe { (&(*overflow).connection, &(*overflow).before) };
    if !flows && connection.service == *service {
        return Some(connection);
    }
    if !flows && before.service == *service {
        return Some(before);
    }
    each_flow!(overflow, flow => {
        if is_to(flow, service) {
            return Some(flow);
        }
    });
    None
}

#[inline(never)]
fn is_to(translation: &Translation<Wide>, service: &Endpoint<Wide>) -> bool {
    translation.service == *service
}

#[inline(never)]
fn find_backend(
    overflow: *mut Overflow,
    backend: &Endpoint<Wide>,
    answers: bool,
) -> Option<&'static Translation<Wide>> {
    let hidden = if answers { HIDDEN } else { 0 };
    // SAFETY: see `storage`.
    let (connection, before) = unsafe { (&(*overflow).connection, &(*overflow).before) };
    if is_by(connection, backend, hidden) {
        return Some(connection);
    }
    if is_by(before, backend, hidden) {
        return Some(before);
    }
    each_flow!(overflow, flow => {
        if is_by(flow, backend, hidden) {
            return Some(flow);
        }
    });
    None
}

#[inline(never)]
fn is_by(translation: &Translation<Wide>, backend: &Endpoint<Wide>, hidden: u32) -> bool {
    translation.backend == *backend && translation.id & hidden == 0
}

/// Remembers the connection, in place of the one before it in the same family: the kernel may refuse the other one to a
/// socket that is connected. Says whether it could. For the socket of which a subflow with the cookie `subflow` is connected:
/// only that one changes anything from then on, the others follow it. A part of the function that is called for it: the kernel
/// counts 32 bytes of stack for each call, and has 512.
#[inline(always)]
pub(crate) fn connect(socket: *mut bpf_sock, subflow: u64, translation: &Translation<Wide>) -> bool {
    let Some(overflow) = storage(socket, true) else { return false };
    if overflow.subflow != subflow && overflow.subflow != 0 {
        return false;
    }
    overflow.subflow = subflow;
    rename(overflow, &translation.service, &translation.backend);
    uncount(&overflow.connection);
    if is_mapped(&overflow.connection.backend.address) != is_mapped(&translation.backend.address) {
        overflow.before = overflow.connection;
    }
    overflow.connection = *translation;
    true
}

/// The socket's connection goes by what is in its place in `peers` from now on, or to what is no Service: then `service` is
/// the same as `backend`.
#[inline(never)]
pub(crate) fn disconnect(socket: *mut bpf_sock, service: &Endpoint<Wide>, backend: &Endpoint<Wide>) {
    if let Some(overflow) = storage(socket, false) {
        end(overflow, backend);
        rename(overflow, service, backend);
    }
}

/// As [`disconnect`], for a socket of Multipath TCP.
#[inline(never)]
pub(crate) fn leave(socket: *mut bpf_sock, subflow: u64, backend: &Endpoint<Wide>) {
    if let Some(overflow) = storage(socket, false)
        && overflow.subflow == subflow
    {
        end(overflow, backend);
    }
}

#[inline(always)]
fn end(overflow: &mut Overflow, backend: &Endpoint<Wide>) {
    uncount(&overflow.connection);
    erase(&mut overflow.connection, backend);
    erase(&mut overflow.before, backend);
}

#[inline(always)]
fn erase(connection: &mut Translation<Wide>, backend: &Endpoint<Wide>) {
    if connection.backend == *backend {
        // Word by word: to write all of it would be a call of `memset`.
        connection.service.port = 0;
        connection.backend.port = 0;
    }
}

/// Remembers a flow, in place of one to the same Service, or else of one whose backend is no more. Says whether it could.
#[inline(never)]
pub(crate) fn send(socket: *mut bpf_sock, translation: &Translation<Wide>) -> bool {
    storage(socket, true)
        .is_some_and(|overflow| add(overflow, translation) || add_for_one_that_is_over(overflow, translation))
}

#[inline(never)]
fn add(overflow: *mut Overflow, translation: &Translation<Wide>) -> bool {
    each_flow!(overflow, flow => {
        if replace(flow, translation) {
            return true;
        }
    });
    false
}

#[inline(never)]
fn replace(flow: &mut Translation<Wide>, translation: &Translation<Wide>) -> bool {
    if flow.id & FLOW != 0 && flow.service != translation.service {
        return false;
    }
    uncount(flow);
    *flow = *translation;
    true
}

#[inline(never)]
fn add_for_one_that_is_over(overflow: *mut Overflow, translation: &Translation<Wide>) -> bool {
    each_flow!(overflow, flow => {
        if replace_if_over(flow, translation) {
            return true;
        }
    });
    false
}

/// What was counted went with the backend.
#[inline(never)]
fn replace_if_over(flow: &mut Translation<Wide>, translation: &Translation<Wide>) -> bool {
    let is_over = is_over(flow);
    if is_over {
        *flow = *translation;
    }
    is_over
}

/// What is sent to `backend` is from now on sent to it by the name `service`.
#[inline(never)]
pub(crate) fn name(socket: *mut bpf_sock, service: &Endpoint<Wide>, backend: &Endpoint<Wide>) {
    if let Some(overflow) = storage(socket, false) {
        rename(overflow, service, backend);
    }
}

#[inline(always)]
fn rename(overflow: *mut Overflow, service: &Endpoint<Wide>, backend: &Endpoint<Wide>) {
    // SAFETY: see `storage`.
    let (connection, before) = unsafe { (&mut (*overflow).connection, &mut (*overflow).before) };
    hide(connection, service, backend);
    hide(before, service, backend);
    each_flow!(overflow, flow => { hide(flow, service, backend); });
}

#[inline(never)]
fn hide(translation: &mut Translation<Wide>, service: &Endpoint<Wide>, backend: &Endpoint<Wide>) {
    if translation.backend == *backend {
        let hidden = if translation.service == *service { 0 } else { HIDDEN };
        translation.id = translation.id & !HIDDEN | hidden;
    }
}

/// Takes all off the counts, for the socket is closed.
#[inline(always)]
pub(crate) fn forget(socket: *mut bpf_sock) {
    if let Some(overflow) = storage(socket, false) {
        uncount_all(overflow);
    }
}

#[inline(never)]
fn uncount_all(overflow: *mut Overflow) {
    // SAFETY: see `storage`.
    uncount(unsafe { &(*overflow).connection });
    each_flow!(overflow, flow => { uncount(flow); });
}
