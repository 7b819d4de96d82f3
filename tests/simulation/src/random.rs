//! Where the operating system's randomness comes from in a simulation: from the seed.
//!
//! Hash maps, elections and the order in which ready tasks are looked at are all random at the bottom, and all of them ask
//! the C library for it.

use std::sync::atomic::{AtomicU64, Ordering};

/// The state of the generator; 0: the operating system is asked.
static STATE: AtomicU64 = AtomicU64::new(0);

/// From now on, for the whole process, randomness is what the seed makes it.
pub fn comes_from(seed: u64) {
    STATE.store(next(seed ^ 0x6a09_e667_f3bc_c908) | 1, Ordering::Relaxed);
}

/// One step of splitmix64.
fn next(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Takes the place of the C library's function in programs that this crate is part of.
///
/// # Safety
/// As in getrandom(2): `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    if STATE.load(Ordering::Relaxed) == 0 {
        // SAFETY: the arguments are those of the system call, and the caller's.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) } as libc::ssize_t;
    }
    // SAFETY: the caller says that there is room for so many bytes, and nobody else has them.
    let out = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for piece in out.chunks_mut(8) {
        let state = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        piece.copy_from_slice(&next(state).to_le_bytes()[..piece.len()]);
    }
    length as libc::ssize_t
}
