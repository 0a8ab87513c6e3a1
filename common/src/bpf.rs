//! What bpf(2) says of programs on cgroups.
#![expect(unsafe_code, reason = "system calls")]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use nix::libc;

/// `BPF_CGROUP_INET4_CONNECT`, `BPF_CGROUP_INET6_CONNECT`, `BPF_CGROUP_UDP4_SENDMSG`, `BPF_CGROUP_UDP6_SENDMSG`.
pub const HOOKS: [u32; 4] = [10, 11, 14, 15];

const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;

/// More programs than the kernel takes on a hook of one cgroup (`BPF_CGROUP_MAX_PROGS`), on several levels.
const MOST: usize = 1024;

/// The numbers of the programs that run for a cgroup at a hook. Takes CAP_NET_ADMIN.
///
/// # Errors
/// What the kernel says.
pub fn attached(cgroup: &File, hook: u32) -> io::Result<Vec<u32>> {
    #[repr(C)]
    struct Query {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        pad: u32,
    }
    const EFFECTIVE: u32 = 1;
    let mut ids = vec![0_u32; MOST];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: hook,
        query_flags: EFFECTIVE,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: u32::try_from(MOST).unwrap_or_default(),
        pad: 0,
    };
    bpf(PROG_QUERY, &mut query)?;
    ids.truncate(query.prog_cnt as usize);
    Ok(ids)
}

/// A program's name, of which the kernel keeps 15 bytes; nothing if it is gone. Takes CAP_SYS_ADMIN.
///
/// # Errors
/// What the kernel says.
pub fn name(id: u32) -> io::Result<Option<String>> {
    #[repr(C)]
    struct GetId {
        prog_id: u32,
        next_id: u32,
        open_flags: u32,
    }
    /// The beginning of the kernel's `struct bpf_prog_info`.
    #[repr(C)]
    struct ProgInfo {
        before: [u64; 8],
        name: [u8; 16],
    }
    #[repr(C)]
    struct InfoByFd {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let program = match bpf(PROG_GET_FD_BY_ID, &mut GetId { prog_id: id, next_id: 0, open_flags: 0 }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // SAFETY: the call made it, and nobody else has it.
        fd => unsafe { OwnedFd::from_raw_fd(fd?) },
    };
    let mut info = ProgInfo { before: [0; 8], name: [0; 16] };
    let mut ask = InfoByFd {
        bpf_fd: program.as_raw_fd().cast_unsigned(),
        info_len: u32::try_from(size_of::<ProgInfo>()).unwrap_or_default(),
        info: (&raw mut info) as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut ask)?;
    Ok(Some(info.name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect()))
}

/// A call whose attribute is `T`.
fn bpf<T>(command: libc::c_long, attribute: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes no more of the attribute than its size, and what the attribute points to is as long
    // as it says.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(-1)) }
}
