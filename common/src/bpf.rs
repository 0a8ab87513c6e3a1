//! bpf(2), as far as aya has no function for it: programs on cgroups, and links.
#![expect(unsafe_code, reason = "system calls")]

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use nix::libc;

/// `BPF_CGROUP_INET4_CONNECT`, `BPF_CGROUP_INET6_CONNECT`, `BPF_CGROUP_UDP4_SENDMSG`, `BPF_CGROUP_UDP6_SENDMSG`.
pub const HOOKS: [u32; 4] = [10, 11, 14, 15];

/// The kind of a program, and where it is attached: `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` on `BPF_CGROUP_INET4_CONNECT`.
pub const CONNECT: (u32, u32) = (18, 10);
/// `BPF_PROG_TYPE_CGROUP_SOCK` on `BPF_CGROUP_INET_SOCK_RELEASE`.
pub const SOCK_RELEASE: (u32, u32) = (9, 34);

const PROG_LOAD: libc::c_long = 5;
const OBJ_GET: libc::c_long = 7;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const LINK_UPDATE: libc::c_long = 29;

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
        target_fd: number(cgroup.as_fd()),
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
    let program = match open(PROG_GET_FD_BY_ID, &mut GetId { prog_id: id, next_id: 0, open_flags: 0 }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        program => program?,
    };
    let mut info = ProgInfo { before: [0; 8], name: [0; 16] };
    ask(program.as_fd(), &mut info)?;
    Ok(Some(info.name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect()))
}

/// Whether the kernel takes a program of such a kind, each of whose instructions is a `struct bpf_insn`.
///
/// # Errors
/// What the kernel says.
pub fn verify((prog_type, expected_attach_type): (u32, u32), program: &[[u8; 8]]) -> io::Result<()> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log: [u32; 4],
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    let mut load = Load {
        prog_type,
        insn_cnt: u32::try_from(program.len()).unwrap_or(u32::MAX),
        insns: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type,
        ..Load::default()
    };
    open(PROG_LOAD, &mut load).map(drop)
}

/// Opens what is pinned at `path`.
///
/// # Errors
/// What the kernel says.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Get {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    open(OBJ_GET, &mut Get { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 })
}

/// Replaces the program of a link in one step. Needs Linux 5.7.
///
/// # Errors
/// What the kernel says.
pub fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let (link_fd, new_prog_fd) = (number(link), number(program));
    bpf(LINK_UPDATE, &mut Update { link_fd, new_prog_fd, flags: 0, old_prog_fd: 0 }).map(drop)
}

/// The number of the cgroup that a link is attached to, 0 if that was removed. Needs Linux 5.8.
///
/// # Errors
/// What the kernel says.
pub fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    /// The part of the kernel's `struct bpf_link_info` that cgroups' links fill.
    #[repr(C)]
    #[derive(Default)]
    struct LinkInfo {
        kind: u32,
        id: u32,
        prog_id: u32,
        pad: u32,
        cgroup_id: u64,
        attach_type: u32,
        pad2: u32,
    }
    let mut info = LinkInfo::default();
    ask(link, &mut info)?;
    Ok(info.cgroup_id)
}

/// Fills in what the kernel says of a program or a link, as far as `T` has room for it.
fn ask<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct InfoByFd {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let info_len = u32::try_from(size_of::<T>()).unwrap_or_default();
    let mut ask = InfoByFd { bpf_fd: number(object), info_len, info: (&raw mut *info) as u64 };
    bpf(OBJ_GET_INFO_BY_FD, &mut ask).map(drop)
}

fn number(file: BorrowedFd<'_>) -> u32 {
    file.as_raw_fd().cast_unsigned()
}

/// A call that makes a file.
fn open<T>(command: libc::c_long, attribute: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the call made it, and nobody else has it.
    bpf(command, attribute).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A call whose attribute is `T`.
fn bpf<T>(command: libc::c_long, attribute: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes no more of the attribute than its size, and what the attribute points to is as long
    // as it says.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}
